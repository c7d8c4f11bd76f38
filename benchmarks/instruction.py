"""Three instruction domains one after another on a small chat model: OP-Mix with SFT and with self-distillation against what people do.

    python benchmarks/instruction.py --seed 0        # a base, then every arm; resumes
    python benchmarks/instruction.py --table         # all seeds that are finished, as a table and results/instruction.json

The base is pretrained from scratch on text. Then mbpp, gsm8k and medquad come in turn, the same supervised tokens in every arm:

    opmix-sft        OP-Mix decides, SFT
    opmix-sdft       OP-Mix decides, self-distillation
    sequential-sft   only the new domain
    replay10-sft     nine tenths new, one tenth of what came before
    sdft             self-distillation on the new domain alone, which is meant to forget little by itself

Losses are of answers, on the test split, nats per token; FLOPs include searches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import record

import opmix
from opmix.cli.console import Display, quiet_libraries

TEXTS = {"medical": "medical_nih", "reviews": "reviews_movie", "python": "code_python"}
SKILLS = {"mbpp": "code_mbpp", "gsm8k": "math_gsm8k", "medquad": "medical_medquad"}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
ARMS: dict[str, tuple[str, str]] = {
    "opmix-sft": ("search", "sft"),
    "opmix-sdft": ("search", "sdft"),
    "sequential-sft": ("new", "sft"),
    "replay10-sft": ("replay", "sft"),
    "sdft": ("new", "sdft"),
}
PURPOSES = ("probes", "proxies", "verification")


def shared_settings(data: Path, seed: int) -> dict[str, Any]:
    files = {n: data / "pretrain" / d for n, d in TEXTS.items()} | {n: data / "instruct" / d for n, d in SKILLS.items()}
    return {
        "domains": {
            n: {"train": str((f / "train.jsonl.gz").resolve()), "valid": str((f / "valid.jsonl.gz").resolve())}
            for n, f in files.items()
        },
        "chat_template": TEMPLATE,
        "sequence_length": 256,
        "seeds": [seed],
        "probes": {"steps": 25},
        "proxies": {"eval_sequences": 32},
        "evaluation": {"sequences": 100},
        "sdft": {"max_new_tokens": 64},
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "weight_decay": 0.1},
    }


def base_life(data: Path, seed: int, tokens: float) -> dict[str, Any]:
    settings = shared_settings(data, seed)
    return {
        **settings,
        "trainer": {**settings["trainer"], "learning_rate": 3e-3},
        "architecture": {
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 3000, "documents": 100, "special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]},
        "stages": [{"name": "text", "domains": list(TEXTS), "tokens": tokens, "mixture": "uniform"}],
    }


def arm_life(arm: str, data: Path, seed: int, base: Path, tokens: float) -> dict[str, Any]:
    how, objective = ARMS[arm]
    old = dict.fromkeys(TEXTS, 1 / len(TEXTS))
    stages, before = [], dict(old)
    for skill in SKILLS:
        stage: dict[str, Any] = {"name": skill, "add": [skill], "tokens": tokens, "objective": objective}
        if how == "new":
            stage["mixture"] = {skill: 1.0}
        elif how == "replay":
            stage["mixture"] = before = {**{n: 0.1 * s for n, s in before.items()}, skill: 0.9}
        stages.append(stage)
    return {**shared_settings(data, seed), "model": str(base.resolve()), "old_mixture": old, "stages": stages}


def run_seed(args: argparse.Namespace) -> None:
    home = args.out / f"seed-{args.seed}"
    with Display() as display:
        base = opmix.run(base_life(args.data, args.seed, args.base_tokens), out=home / "base", progress=display)
        for arm in args.arms:
            display.note(f"seed {args.seed}: {arm}")
            opmix.run(arm_life(arm, args.data, args.seed, base.model(), args.tokens), out=home / arm, progress=display)


def figures(life: Mapping[str, Any]) -> dict[str, Any]:
    """Of one arm and seed: mean final loss of the skills, forgetting, FLOPs."""
    stages = next(iter(life["seeds"].values()))["stages"]
    final = {d: x["after"] for d, x in stages[-1]["losses"]["test"].items()}
    learned = {s["name"]: s["losses"]["test"][s["name"]]["after"] for s in stages}
    start = {d: stages[0]["losses"]["test"][d]["before"] for d in TEXTS}
    flops: dict[str, float] = {}
    for stage in stages:
        for purpose, amount in stage["cost"]["flops"].items():
            flops[purpose] = flops.get(purpose, 0.0) + amount
    return {
        "skills": statistics.fmean(final[s] for s in SKILLS),
        "text": statistics.fmean(final[t] for t in TEXTS),
        "all": statistics.fmean(final.values()),
        "forgotten_text": statistics.fmean(final[t] - start[t] for t in TEXTS),
        "forgotten_skills": statistics.fmean(final[s] - learned[s] for s in list(SKILLS)[:-1]),
        "flops": sum(flops.values()),
        "search_flops": sum(flops.get(p, 0.0) for p in PURPOSES),
        "final": final,
        "mixtures": {s["name"]: s["mixture"] for s in stages},
        "before": {s["name"]: s["losses"]["test"][s["name"]]["before"] for s in stages},
        "learned": learned,
        "supervised_tokens": [s["parts"][-1]["tokens"] for s in stages],
    }


def table(args: argparse.Namespace) -> None:
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        for file in sorted(args.out.glob(f"seed-*/{arm}/life.json")):
            found.setdefault(arm, {})[file.parts[-3]] = figures(json.loads(file.read_text()))
    columns = ["skills", "text", "all", "forgotten_text", "forgotten_skills", "flops", "search_flops"]
    sys.stdout.write("| arm | n | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2) + "\n")
    for arm, seeds in found.items():
        cells = []
        for column in columns:
            values = [s[column] for s in seeds.values()]
            form = "{:.3g}" if "flops" in column else "{:.3f}"
            deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(form.format(statistics.fmean(values)) + deviation)
        sys.stdout.write(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |\n")
    record(args.results, {"arms": found})


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds pretrain/ and instruct/")
    arguments.add_argument("--out", type=Path, default=Path("runs/instruction"))
    arguments.add_argument("--results", type=Path, default=Path("benchmarks/results/instruction.json"))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--base-tokens", type=float, default=2e6)
    arguments.add_argument("--tokens", type=float, default=1e5, help="supervised tokens of a stage")
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments.add_argument("--table", action="store_true")
    args = arguments.parse_args()
    quiet_libraries()
    table(args) if args.table else run_seed(args)


if __name__ == "__main__":
    main()
