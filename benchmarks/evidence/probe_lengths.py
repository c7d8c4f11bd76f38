"""How short may probes be, and how often must they be looked at? The confirming cells of the race, read with probes cut short.

    python benchmarks/evidence/probe_lengths.py

Nothing is trained: the looks of `results/predictors-cells.json` are the points of the product's law in effective tokens. Looks at 4 to
16 steps are of 16 held-out sequences a set, those at 32 steps of 32. r and rank over all mixtures trained in full in a cell; regret and
loss against uniform of the trained mixture that the law foretells lowest (worst cell in brackets).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from opmix.mixing.effective_tokens_fit import fit_effective_tokens
from opmix.mixing.mixture import FloatArray

CELLS = Path(__file__).parent / "results" / "predictors-cells.json"


def foretold(cell: dict[str, Any], kind: str, last: int, looks: int, mixtures: FloatArray) -> FloatArray:
    """Losses (M, E) by the law on looks `last - looks + 1` to `last`; a look doubles the steps of the one before."""
    points, losses = (np.array(cell["probes"][kind][k])[1:] for k in ("tokens", "losses"))  # without the base
    count = len(points) // (len(cell["domains"]) + 1)
    look = np.tile(np.arange(count), len(points) // count)
    kept = np.flatnonzero((look <= last) & (look > last - looks))
    stage = cell["lengths"]["stage"] * 512
    fit = fit_effective_tokens(
        points[kept] / points[kept].sum(axis=1, keepdims=True),
        points[kept].sum(axis=1) * stage,
        losses[kept],
        domains=cell["domains"],
        metrics=(*cell["domains"], *cell["targets"]),
        probes=[str(k // count) for k in kept],
        stage_tokens=stage,
        unique_tokens=cell["available"],
    )
    return fit.law.predict(mixtures)


def scores(told: FloatArray, trained: FloatArray) -> tuple[float, ...]:
    """r, rank correlation, regret, against uniform; of objectives (M,), uniform first."""
    gains, measured, pick = told[0] - told[1:], trained[0] - trained[1:], int(told.argmin())
    r = float(np.corrcoef(gains, measured)[0, 1])
    return (
        r,
        float(spearmanr(gains, measured).statistic),
        trained[pick] / trained.min() - 1,
        trained[pick] / trained[0] - 1,
    )


def main() -> None:
    found: dict[tuple[Any, ...], list[tuple[float, ...]]] = defaultdict(list)
    for cell in json.loads(CELLS.read_text())["cells"].values():
        if cell["use"] != "confirming":
            continue
        count, targets = len(cell["domains"]), len(cell["targets"])
        uniform = [t["losses"] for t in cell["trainings"] if t["name"] == "uniform"]
        others = [t for t in cell["trainings"] if t["name"] != "uniform"]
        mixtures = np.array([np.full(count, 1 / count), *(t["mixture"] for t in others)])
        trained = np.array([np.mean(uniform, axis=0), *(t["losses"] for t in others)])
        objectives = {
            "domains": np.r_[np.ones(count), np.zeros(targets)],
            "targets": np.r_[np.zeros(count), np.ones(targets)],
        }
        for kind in ("lora", "full"):
            for last in range(4):
                for looks in range(1, min(last + 1, 3) + 1):
                    told = foretold(cell, kind, last, looks, mixtures)
                    for name, weights in objectives.items():
                        w = weights / weights.sum()
                        found[name, kind, 4 << last, looks].append(scores(told @ w, trained @ w))
    print("| objective | probes | steps | looks | r (worst) | rank | regret (worst) | against uniform (worst) |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, kind, steps, looks), rows in sorted(found.items()):
        a = np.array(rows)
        numbers = f"{a[:, 0].mean():.2f} ({a[:, 0].min():.2f}) | {a[:, 1].mean():.2f} | {a[:, 2].mean():.2%} ({a[:, 2].max():.2%})"
        print(f"| {name} | {kind} | {steps} | {looks} | {numbers} | {a[:, 3].mean():+.2%} ({a[:, 3].max():+.2%}) |")


if __name__ == "__main__":
    main()
