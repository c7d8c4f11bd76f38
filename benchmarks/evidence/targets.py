"""Mixtures for text that is not trained on: a search told of its targets, against rules, swarms, an oracle and a person (targets.md).

    python benchmarks/evidence/targets.py run [--workers 16] [--cells answers-s3-0.3M ...] [--sizes 0.3M 1.1M] [--data ../shared/data]
    python benchmarks/evidence/targets.py estimate [--sizes 0.3M 1.1M]
    python benchmarks/evidence/targets.py analyse

`run` makes the numbers of each cell under `--out`, in as many processes of one thread as `--workers` says; every training and search is
made once and kept, so it can be stopped and started at any time. `estimate` says what the cells take. `analyse` writes results/targets.json
from the cells that are whole.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from predictor_cells import BATCH, TARGET_SIZES
from predictor_texts import LENGTH, VOCABULARY
from predictors import write_lines
from target_cells import CONFIRMED, MEAN, ORDERS, POOLS, SEARCHES, SWARMS, USUAL, Task, Trial, one_thread, unconfirmed
from transformers import LlamaConfig, LlamaForCausalLM

from opmix.cli.console import quiet_libraries
from opmix.methods.trained_probes import DISCREPANCY
from opmix.mixing.confirm import stage_interval
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.estimates import Estimate
from opmix.mixing.mixture import FloatArray, Mixture

RESULTS = Path(__file__).parent / "results" / "targets.json"
LIMIT = 5.0
"""Percent: the default limit on the training domains."""
TIMED = 8
"""Steps that the estimate is made from."""
FIXED = 5.0
"""Core-minutes of a cell's solves, draws and trees, whatever the size of its model; measured with the size `tiny`."""


# -- rows ------------------------------------------------------------------------------------------------------------


def rows_of(trial: Trial) -> Iterator[dict[str, Any]]:
    """Everything of a whole cell, a row for each objective and method."""
    count, start = len(trial.cell.domains), trial.laboratory.start()
    base = trial.test_losses(start)
    rules = {n: (m, trial.trained(m), {}) for n, m in trial.rules().items()}
    singles = {d: (m, trial.trained(m)) for d, m in trial.singles().items()}
    proposals = trial.proposals()
    for objective, told in trial.objectives.items():
        weights = np.array([0.0] * count + list(told.values()))
        weights /= weights.sum()
        made: dict[str, tuple[Mixture, FloatArray, dict[str, Any]]] = dict(rules)
        best = min(singles, key=lambda d: float(singles[d][1] @ weights))
        made["best single"] = (*singles[best], {"domain": best})
        made["by hand"] = (hand := trial.by_hand(objective), trial.trained(hand), {})
        for method, mixture in proposals[objective].items():
            said = {}
            if method in (*trial.searches, *trial.swarms):
                found = trial.read(trial.search_file(method, objective))
                said = {k: found[k] for k in ("action", "search_share") if k in found} | foretold(trial, found)
            elif method in (by_law := {unconfirmed(s): s for s in CONFIRMED}):
                found = trial.read(trial.search_file(by_law[method], objective))
                said = {"told_gain": told_gain(found), "put_aside": proposed(found)["breaks"]}
            made[method] = (mixture, trial.trained(mixture), said)
        facts = {"targets": objective, "pool": trial.pool, "seed": trial.seed, "orders": ORDERS}
        for method, (mixture, losses, said) in made.items():
            row = {**facts, "parameters": start["parameters"], "method": method}
            row["mixture"] = {d: round(float(s), 4) for d, s in mixture.items()}
            row |= judged(trial, weights, losses - rules["uniform"][1], losses / base) | said
            if "told_gain" in said:
                row["gain"] = round(float((rules["uniform"][1] - losses) @ weights), 4)
                row["covered"] = bool(said["told_gain"][1] <= row["gain"] <= said["told_gain"][2])
            yield row


def judged(trial: Trial, weights: FloatArray, away: FloatArray, risen: FloatArray) -> dict[str, Any]:
    """What a mixture came to; `away`: losses less uniform's (E,), `risen`: by the base's (E,)."""
    count = len(trial.cell.domains)
    percent, risen = 100 * np.expm1(away), 100 * (risen[:count] - 1)
    others = [p for p, w in zip(percent[count:], weights[count:], strict=True) if not w]
    worst = int(np.argmax(risen))
    return {
        "perplexity_vs_uniform": round(float(100 * np.expm1(away @ weights)), 3),
        "by_target": dict(zip(POOLS[trial.pool]["targets"], percent[count:].round(3).tolist(), strict=True)),
        "others": round(float(np.mean(others)), 3) if others else None,
        "risen": dict(zip(trial.cell.domains, risen.round(3).tolist(), strict=True)),
        "most_risen": [trial.cell.domains[worst], round(float(risen[worst]), 3)],
        "limits_kept": bool(risen.max() <= LIMIT),
    }


def foretold(trial: Trial, found: Mapping[str, Any]) -> dict[str, Any]:
    """Percent that a search foretold of each domain, from the mixture in use to its own: value and interval."""
    changes = found.get("evidence", {}).get("payoff", {}).get("changes")
    if changes is None:
        return {}
    base = found["baseline"]

    def percent(name: str) -> list[float]:
        told = changes[name]
        return [round(float(100 * x / base[name]), 3) for x in (told["nats"], *told["interval"])]

    return {"foretold_change": {name: percent(name) for name in trial.cell.sets}}


def proposed(found: Mapping[str, Any]) -> dict[str, Any]:
    """The optimum as a trained candidate; `breaks`: domains whose limits it was told to break, for which it was put aside."""
    return next(c for c in found["evidence"]["candidates"] if c["name"] == "proposal")


def told_gain(found: Mapping[str, Any]) -> list[float]:
    """Nats that law and probes together told of the optimum's gain over the mixture in use, and the interval."""
    proposal = proposed(found)
    spread = DISCREPANCY["lora"].spread
    low, high = stage_interval(Estimate(proposal["gain"], proposal["error"]), spread, DecisionSettings())
    return [round(float(x), 4) for x in (proposal["gain"], low, high)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Perplexity against uniform by method, over cells: single targets, and the mean of several."""
    made: dict[str, Any] = {}
    for kind in ("single", MEAN):
        for method in dict.fromkeys(r["method"] for r in rows):
            mine = [r for r in rows if r["method"] == method and (r["targets"] == MEAN) == (kind == MEAN)]
            if not mine:
                continue
            told = np.array([r["perplexity_vs_uniform"] for r in mine])
            shares = [r["search_share"] for r in mine if "search_share" in r]
            made[f"{kind}, {method}"] = {
                "cells": len(mine),
                "median": round(float(np.median(told)), 2),
                "mean": round(float(told.mean()), 2),
                "worst": round(float(told.max()), 2),
                "limits_kept": sum(r["limits_kept"] for r in mine),
                **({"search_share": round(float(np.mean(shares)), 3)} if shares else {}),
                **({"covered": sum(r["covered"] for r in mine)} if "covered" in mine[0] else {}),
            }
    return made


# -- running ---------------------------------------------------------------------------------------------------------


def trials(args: argparse.Namespace) -> list[Trial]:
    """Cells asked for, one seed of every pool first, the small ones before."""
    every = [
        Trial(p, s, args.out, args.data, size, tuple(args.swarms), tuple(args.searches))
        for size in args.sizes
        for i in range(max(len(p["seeds"]) for p in POOLS.values()))
        for p in POOLS
        for s in POOLS[p]["seeds"][i : i + 1]
    ]
    return [t for t in every if not args.cells or t.name in args.cells]


def run(args: argparse.Namespace) -> int:
    """Do what is left; the number of tasks that failed."""
    mine = trials(args)
    estimate(args)
    for trial in mine:
        trial.cell.text.write()  # in this process: cells share what their sources' text is read into
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=one_thread) as pool:
        return scheduled(pool, mine, args.workers)


def scheduled(pool: ProcessPoolExecutor, mine: Sequence[Trial], workers: int) -> int:
    """Hand out tasks until nothing is left but what failed; the number of those."""
    running: dict[Future[float], Task] = {}
    failed: set[Any] = set()
    while True:
        busy = failed | {t.key for t in running.values()}
        for task in (t for trial in mine for t in trial.left() if t.key not in busy):
            if len(running) == workers:
                break
            running[pool.submit(Task.run, task)] = task
        if not running:
            return len(failed)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            try:
                told = f"{future.result():.0f} s"
            except Exception as error:
                failed.add(task.key)
                told = "FAILED: " + "".join(traceback.format_exception(error))
            left = "" if task.trial.left() or failed else "; the cell is whole"
            print(f"{time.strftime('%H:%M:%S')} {task}: {told}{left}", flush=True)


def estimate(args: argparse.Namespace) -> None:
    """Core-minutes of each cell, by the time of a few steps on random tokens."""
    torch.set_num_threads(1)
    seconds = {size: step_seconds(size) for size in args.sizes}
    for trial in trials(args):
        left = "" if trial.laboratory.folder.exists() else ", nothing done yet"
        minutes = FIXED + trial.work() * seconds[trial.size] / 60
        print(f"{trial.name}: about {minutes:.0f} core-minutes in all ({seconds[trial.size]:.3f} s a step){left}")
    sys.stdout.flush()


def step_seconds(size: str) -> float:
    """Seconds of an optimizer step of 512 tokens on one thread."""
    model = LlamaForCausalLM(LlamaConfig(**TARGET_SIZES[size].architecture, vocab_size=VOCABULARY))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))
    for step in range(TIMED + 2):
        if step == 2:
            started = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / TIMED


def with_what_was_run(trial: Trial) -> Trial:
    """With those of the searches and swarms that were run and trained in full; they may be left out of a cell."""
    made = tuple(m for m in trial.swarms if all(trial.made(trial.search_file(m, o)) for o in trial.objectives))
    searched = tuple(s for s in SEARCHES if all(trial.made(trial.search_file(s, o)) for o in trial.wanted(s)))
    whole = replace(trial, swarms=made, searches=searched)
    return replace(whole, swarms=()) if whole.left() else whole


def analyse(args: argparse.Namespace) -> None:
    """Write the rows of whole cells, and keep those of cells that were made elsewhere."""
    found = [with_what_was_run(t) for t in trials(args) if (t.laboratory.folder / "start.json").exists()]
    whole = [t for t in found if not t.left()]
    made = [row for trial in whole for row in rows_of(trial)]
    before = json.loads(RESULTS.read_text())
    cell = ("pool", "seed", "parameters")
    again = {tuple(r[k] for k in cell) for r in made}
    rows = [r for r in before["rows"] if tuple(r[k] for k in cell) not in again] + made
    names = list(dict.fromkeys([*before["cells"], *(t.name for t in whole)]))
    told = {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "cells": names}
    write_lines(RESULTS, {**told, "threads": 1, "summary": summary(rows), "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "estimate", "analyse"])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread")
    parser.add_argument("--cells", nargs="+", default=[])
    parser.add_argument("--sizes", nargs="+", default=["0.3M"], choices=list(TARGET_SIZES))
    parser.add_argument("--searches", nargs="+", default=list(USUAL), choices=list(SEARCHES))
    parser.add_argument("--swarms", nargs="*", default=list(SWARMS), choices=list(SWARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/targets"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    quiet_libraries()
    if args.what == "run":
        sys.exit(1 if run(args) else 0)
    {"estimate": estimate, "analyse": analyse}[args.what](args)


if __name__ == "__main__":
    main()
