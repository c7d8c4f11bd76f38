"""Mixtures for text that is not trained on: a search told of its targets, against rules, an oracle and a person (targets.md).

    OMP_NUM_THREADS=1 python benchmarks/evidence/targets.py run [--cells answers-s3 ...] [--data ../shared/data]
    python benchmarks/evidence/targets.py analyse

`run` makes the numbers of each cell under `--out`, every training and search once, so it can be stopped and started at any time; `analyse`
writes results/targets.json from the cells that are whole.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
import yaml
from predictor_cells import Cell, leaning
from predictor_laws import Numbers, log_linear, optimum
from predictor_runs import STAGE, Laboratory
from predictor_texts import Pool
from predictors import write_lines

from opmix.cli.console import quiet_libraries
from opmix.config import parse_config
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixture_search.search import run_search

RESULTS = Path(__file__).parent / "results" / "targets.json"
POOLS = yaml.safe_load(Path(__file__).with_name("targets.yaml").read_text())
ORDERS = 2
SINGLE = 0.65
LIMIT = 5.0
"""Percent: the default limit on the training domains."""
MEAN = "mean"


@dataclass(frozen=True)
class Trial:
    """One cell: a pool and a seed."""

    pool: str
    seed: int
    out: Path
    data: Path
    size: str = "0.3M"

    @property
    def name(self) -> str:
        return f"{self.pool}-s{self.seed}"

    @cached_property
    def cell(self) -> Cell:
        told = POOLS[self.pool]
        pool = Pool(self.name, "confirming", self.seed, told["domains"], tuple(told["targets"]))
        return Cell(pool, self.size, "young", self.out, self.data)

    @cached_property
    def laboratory(self) -> Laboratory:
        return Laboratory(self.cell)

    @property
    def objectives(self) -> dict[str, dict[str, float]]:
        """Weights of the targets: each alone, and all alike."""
        names = self.cell.targets
        single = {t.removeprefix("target_"): {n: float(n == t) for n in names} for t in names}
        return {**single, MEAN: dict.fromkeys(names, 1.0)}

    def rules(self) -> dict[str, Mixture]:
        """Mixtures that need neither search nor target."""
        sizes = np.array([len(r) for r in self.laboratory.rows.values()], dtype=np.float64)
        stage = self.cell.lengths.stage * 8.0
        made = {"uniform": np.ones(len(sizes)), "size": sizes, "temperature": sizes ** (1 / 5)}
        made["unimax"] = unimax(sizes, stage)
        return {n: Mixture(self.cell.domains, p / p.sum()) for n, p in made.items()}

    def singles(self) -> dict[str, Mixture]:
        count = len(self.cell.domains)
        return {d: Mixture(self.cell.domains, leaning(count, i, SINGLE)) for i, d in enumerate(self.cell.domains)}

    def by_hand(self, objective: str) -> Mixture:
        told = POOLS[self.pool]["by_hand"][objective]
        return Mixture.normalised({d: told[d] for d in self.cell.domains})

    def searched(self, objective: str, law: str) -> dict[str, Any]:
        """What a search recommends; all of a law share one run folder, so probes are trained once."""

        def work() -> dict[str, Any]:
            found = run_search(
                parse_config(self.settings(objective, law)),
                model=copy.deepcopy(self.laboratory.base),
                tokenizer=self.cell.text.tokenizer,
                out=self.laboratory.folder / f"search-{law}",
            )
            decision = found.verdict.decision
            told = {"action": decision.action, "reason": decision.reason, "search_share": found.search_share}
            optimal = found.verdict.optimum.mixture.weights.tolist()
            return {**told, "mixture": found.mixture.weights.tolist(), "optimum": optimal}

        return self.laboratory.unit(f"searches/{law}-{objective}", work)

    def settings(self, objective: str, law: str) -> dict[str, Any]:
        folder, lengths = self.cell.text.folder, self.cell.lengths

        def files(name: str, *splits: str) -> dict[str, str]:
            return {s: str((folder / f"{name}.{s}.jsonl").resolve()) for s in splits}

        return {
            "model": "<the base>",
            "domains": {d: files(d, "train", "valid", "test") for d in self.cell.domains},
            "targets": {t: files(t, "valid", "test") for t in self.cell.targets},
            "old_mixture": dict(self.cell.uniform),
            "budget": lengths.stage * 512,
            "sequence_length": 64,
            "trainer": STAGE,
            "probes": {"steps": lengths.probe},
            "proxies": {"eval_sequences": lengths.held_out},
            "solve": {"weights": self.objectives[objective]},
            "law": law,
            "seed": self.seed,
            "cache_dir": str((folder / "search-cache").resolve()),
        }

    def swarm(self, objective: str) -> Mixture:
        """Optimum of the log-linear law of a swarm."""
        self.laboratory.start()
        self.laboratory.swarm()
        numbers = Numbers(self.laboratory.folder)
        weights = np.array([0.0] * len(self.cell.domains) + list(self.objectives[objective].values()))
        found = optimum(log_linear(numbers, *numbers.swarm), weights / weights.sum(), numbers.uniform, 0.05)
        return Mixture(self.cell.domains, found)

    def trained(self, mixture: Mixture, name: str) -> FloatArray:
        """Test losses (E,) after the stage, the mean over orders of the data."""
        runs = [self.laboratory.full_training(mixture, name, order) for order in range(ORDERS)]
        sets, length = self.cell.sets, 63
        return np.mean([[np.mean(run["test"][s]) / length for s in sets] for run in runs], axis=0)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything of the cell, a row for each objective and method."""
        rules = {n: (m, self.trained(m, n)) for n, m in self.rules().items()}
        singles = {d: (m, self.trained(m, f"single {d}")) for d, m in self.singles().items()}
        base = np.array([np.mean(self.laboratory.start()["test"][s]) / 63 for s in self.cell.sets])
        for objective, told in self.objectives.items():
            weights = np.array([0.0] * len(self.cell.domains) + list(told.values()))
            weights /= weights.sum()
            made: dict[str, tuple[Mixture, FloatArray, dict[str, Any]]] = {n: (*r, {}) for n, r in rules.items()}
            best = min(singles, key=lambda d: float(singles[d][1] @ weights))
            made["best single"] = (*singles[best], {"domain": best})
            hand = self.by_hand(objective)
            made["by hand"] = (hand, self.trained(hand, f"by hand, {objective}"), {})
            for method, law in (("search", "effective_tokens"), ("log_linear", "log_linear")):
                found = self.searched(objective, law)
                mixture = Mixture(self.cell.domains, np.array(found["mixture"]))
                said = {k: found[k] for k in ("action", "search_share")}
                made[method] = (mixture, self.trained(mixture, f"{method}, {objective}"), said)
            mixture = self.swarm(objective)
            made["swarm"] = (mixture, self.trained(mixture, f"swarm, {objective}"), {})
            for method, (mixture, losses, said) in made.items():
                yield self.row(objective, method, mixture, weights, losses - rules["uniform"][1], losses / base, said)

    def row(
        self,
        objective: str,
        method: str,
        mixture: Mixture,
        weights: FloatArray,
        away: FloatArray,
        risen: FloatArray,
        said: Mapping[str, Any],
    ) -> dict[str, Any]:
        """One row; `away`: losses less uniform's (E,), `risen`: by the base's (E,)."""
        count = len(self.cell.domains)
        percent = 100 * np.expm1(away)
        others = [p for p, w in zip(percent[count:], weights[count:], strict=True) if not w]
        worst = int(np.argmax(risen[:count]))
        return {
            "targets": objective,
            "pool": self.pool,
            "seed": self.seed,
            "orders": ORDERS,
            "parameters": self.laboratory.start()["parameters"],
            "method": method,
            "mixture": {d: round(float(s), 4) for d, s in mixture.items()},
            "perplexity_vs_uniform": round(float(100 * np.expm1(away @ weights)), 3),
            "by_target": dict(zip(POOLS[self.pool]["targets"], percent[count:].round(3).tolist(), strict=True)),
            "others": round(float(np.mean(others)), 3) if others else None,
            "most_risen": [self.cell.domains[worst], round(float(100 * (risen[worst] - 1)), 3)],
            "limits_kept": bool(100 * (risen[:count] - 1).max() <= LIMIT),
            **said,
        }


def unimax(sizes: FloatArray, budget: float, epochs: float = 1.0) -> FloatArray:
    """Even shares as far as no domain is repeated more often than so (arXiv 2304.09151), (D,)."""
    shares, left = np.zeros(len(sizes)), budget
    order = np.argsort(sizes)
    for place, d in enumerate(order):
        shares[d] = min(left / (len(order) - place), sizes[d] * epochs)
        left -= shares[d]
    return shares / shares.sum()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Perplexity against uniform by method, over cells: single targets, and the mean of several."""
    made: dict[str, Any] = {}
    for kind in ("single", MEAN):
        for method in dict.fromkeys(r["method"] for r in rows):
            mine = [r for r in rows if r["method"] == method and (r["targets"] == MEAN) == (kind == MEAN)]
            told = np.array([r["perplexity_vs_uniform"] for r in mine])
            shares = [r["search_share"] for r in mine if "search_share" in r]
            made[f"{kind}, {method}"] = {
                "cells": len(mine),
                "median": round(float(np.median(told)), 2),
                "mean": round(float(told.mean()), 2),
                "worst": round(float(told.max()), 2),
                "limits_kept": sum(r["limits_kept"] for r in mine),
                **({"search_share": round(float(np.mean(shares)), 3)} if shares else {}),
            }
    return made


def trials(args: argparse.Namespace) -> Iterator[Trial]:
    """Cells asked for, one seed of every pool first."""
    every = [Trial(p, s, args.out, args.data) for i in range(3) for p in POOLS for s in POOLS[p]["seeds"][i : i + 1]]
    yield from (t for t in every if not args.cells or t.name in args.cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "analyse"])
    parser.add_argument("--cells", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/targets"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    quiet_libraries()
    rows: list[dict[str, Any]] = []
    for trial in trials(args):
        done = trial.laboratory.folder / "rows.json"
        if args.what == "run" and not done.exists():
            started = time.perf_counter()
            trial.cell.text.write()
            made = list(trial.rows())
            done.write_text(json.dumps(made))
            print(f"{time.strftime('%H:%M:%S')} {trial.name}: {time.perf_counter() - started:.0f} s", flush=True)
        rows += json.loads(done.read_text()) if done.exists() else []
    if args.what == "analyse":
        told = {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "threads": torch.get_num_threads()}
        write_lines(RESULTS, {**told, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
