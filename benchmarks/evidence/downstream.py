"""Does a lower loss on a `choice` target mean more right answers? A small chat model before and after an instruction stage.

    python benchmarks/evidence/downstream.py run [--seeds 0 1] [--data ../shared/data] [--out runs/evidence/downstream]
    python benchmarks/evidence/downstream.py run --quick --out /tmp/d      # two small stages, a rehearsal in a minute
    python benchmarks/evidence/downstream.py analyse                       # results/downstream.json and the table

Two exams of four options are made of conversations that nothing trains on (the `valid` files): which answer belongs to a medical question
(the others answer other questions), and which solution to a sum. Half of each chooses the mixture (`valid`), the other half judges
(`test`). A model of 0.5 M parameters reads text and conversations from scratch; after it comes an instruction stage of three sets of
conversations and the text, mixed evenly, by size, and by OP-Mix for the exams, in `opmix.compare`. `acc` and `choice loss` of the `test`
half are `opmix eval`'s, before and after.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import record

import opmix
from opmix.cli.console import quiet_libraries
from opmix.lifecycle.evaluation import Wanted, evaluate_model
from opmix.progress import Silent
from opmix.runs.files import write_json
from opmix.scores import paired_difference

CHATS = ("medical_medquad", "math_gsm8k", "code_mbpp")
TEXTS = ("medical_nih", "docs_python")
EXAMS = {"medicine": "medical_medquad", "sums": "math_gsm8k"}
METHODS = ("uniform", "size", "op_mix")
WORDS, OPTIONS, MOST = 12, 4, 400
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESULTS = Path(__file__).parent / "results" / "downstream.json"


def conversations(file: Path) -> Iterator[tuple[str, str]]:
    """First question and answer of each conversation."""
    with gzip.open(file, "rt", encoding="utf-8") as rows:
        for row in rows:
            first, second = json.loads(row)["messages"][:2]
            yield first["content"], second["content"]


def write_exam(name: str, data: Path, folder: Path) -> dict[str, str]:
    """`valid` and `test` of an exam; which conversation goes where is its own, so that no question is in both."""
    pairs = [
        (q, " ".join(a.split()[:WORDS])) for q, a in conversations(data / "instruct" / EXAMS[name] / "valid.jsonl.gz")
    ]
    rng, rows = random.Random(name), []
    for question, answer in pairs:
        others = sorted({a for _, a in pairs if a != answer})
        options = [answer, *rng.sample(others, OPTIONS - 1)]
        rng.shuffle(options)
        asked = f"<|user|>{question}<|end|><|assistant|>"
        rows.append({"options": [[asked, option] for option in options], "answer": options.index(answer)})
    files, rows = {}, rows[:MOST]
    for part, kept in (("valid", rows[::2]), ("test", rows[1::2])):
        file = folder / f"{name}-{part}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        files[part] = str(file.resolve())
    return files


def comparison(args: argparse.Namespace, targets: dict[str, Any]) -> dict[str, Any]:
    """What `opmix.compare` is told."""
    data, quick = args.data.resolve(), args.quick
    tokens = 40_000 if quick else 500_000
    chats = {n: {"train": str(data / "instruct" / n / "train.jsonl.gz"), "holdout": 0.1} for n in CHATS}
    texts = {n: {"train": str(data / "pretrain" / n / "train.jsonl.gz"), "holdout": 0.05} for n in TEXTS}
    return {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 3000, "documents": 200, "special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]},
        "chat_template": TEMPLATE,
        "domains": {**texts, **chats},
        "targets": targets,
        "sequence_length": 256,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "weight_decay": 0.1},
        "probes": {"steps": 6 if quick else 40},
        "proxies": {"eval_sequences": 16 if quick else 64},
        "solve": {"loss_limits": "none"},
        "evaluation": {"sequences": 8 if quick else 64},
        "seeds": args.seeds,
        "keep": {"models": "all"},
        "stages": [
            {
                "name": "text",
                "phase": "pretraining",
                "domains": [*TEXTS, *CHATS],
                "mixture": "uniform",
                "tokens": tokens,
                "trainer": {"learning_rate": 3e-3},
            },
            {"name": "skills", "phase": "instruction", "domains": [*TEXTS, *CHATS], "tokens": tokens // 8},
        ],
        "methods": {m: {} for m in METHODS},
        "reference": "uniform",
    }


def run(args: argparse.Namespace) -> None:
    """Live, and ask every model."""
    (args.out / "exams").mkdir(parents=True, exist_ok=True)
    exams = {name: write_exam(name, args.data, args.out / "exams") for name in EXAMS}
    targets = {name: {**files, "kind": "choice"} for name, files in exams.items()}
    result = opmix.compare(comparison(args, targets), out=args.out / "run", progress="auto")
    sys.stdout.write(f"{result}\n")
    asked = []
    for model in sorted((args.out / "run").glob("seed-*/**/model/config.json")):
        folder = model.parent.parent
        place = folder.relative_to(args.out / "run").parts
        for name, files in exams.items():
            scores = evaluate_model(str(model.parent), Wanted(domain=Path(files["test"])), Silent())
            for score in scores:
                asked.append(
                    {
                        "seed": int(place[0].removeprefix("seed-")),
                        "method": place[1] if len(place) > 2 else "before",
                        "stage": place[-1],
                        "exam": name,
                        **score.json(),
                        "items": [score.items[i] for i in sorted(score.items)],
                    }
                )
    write_json(args.out / "asked.json", asked)


def analyse(args: argparse.Namespace) -> None:
    """The table, and what it is of."""
    asked = json.loads((args.out / "asked.json").read_text(encoding="utf-8"))
    compared = json.loads((args.out / "run" / "compare.json").read_text(encoding="utf-8"))
    models = sorted({(r["seed"], r["method"], r["stage"]) for r in asked}, key=lambda m: (m[0], m[1] != "before", m[1]))
    of = {(r["seed"], r["method"], r["stage"], r["exam"], r["metric"]): r for r in asked}
    lines = [
        "| seed | mixture | " + " | ".join(f"{e}: choice loss, right" for e in EXAMS) + " |",
        "|---|---|" + "---|" * len(EXAMS),
    ]
    rows = []
    for seed, method, stage in models:
        cells = []
        for exam in EXAMS:
            loss, acc = (of[seed, method, stage, exam, metric] for metric in ("choice loss", "acc"))
            low, high = acc["interval"]
            cells.append(f"{loss['value']:.3f}, {100 * acc['value']:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
            ahead = against(of, seed, method, stage, exam)
            rows.append(
                {
                    "seed": seed,
                    "method": method,
                    "exam": exam,
                    "choice_loss": loss["value"],
                    "accuracy": acc["value"],
                    "interval": acc["interval"],
                    "questions": acc["total"],
                    "ahead_of_uniform": ahead,
                }
            )
        lines.append(f"| {seed} | {method} | " + " | ".join(cells) + " |")
    record(args.results, {"rows": rows, "mixtures": mixtures(compared)})
    sys.stdout.write("\n".join(lines) + "\n")


def against(of: dict[Any, Any], seed: int, method: str, stage: str, exam: str) -> dict[str, Any] | None:
    """Right answers more than with the even mixture, paired by question."""
    if method in ("before", "uniform"):
        return None
    from opmix.scores import TaskScore

    def score(m: str) -> TaskScore:
        kept = {
            k: v for k, v in of[seed, m, stage, exam, "acc"].items() if k not in ("seed", "method", "stage", "exam")
        }
        items = dict(enumerate(kept.pop("items")))
        return TaskScore(**{**kept, "interval": tuple(kept["interval"]), "items": items})

    return paired_difference(score(method), score("uniform")).json()


def mixtures(compared: dict[str, Any]) -> dict[str, Any]:
    """By method and seed, of the instruction stage."""
    return {
        name: {seed: life["stages"][-1]["mixture"] for seed, life in entry["seeds"].items()}
        for name, entry in compared["entrants"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "analyse"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/downstream"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    quiet_libraries()
    {"run": run, "analyse": analyse}[args.what](args)


if __name__ == "__main__":
    main()
