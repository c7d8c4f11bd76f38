"""How the race's full trainings relate to what probes foretell of a domain's own loss, where limits are: level, differences, limits kept.

    python benchmarks/evidence/loss_limits.py

From results/predictors-cells.json alone, by kind of probes: percent of the base's loss that the uniform mixture was foretold and measured
to change; then, over all other trainings and domains by the domain's share, how often a limit of 5 % would have been thought kept, how
often it then was broken, and how often where it was foretold to come near (within NEAR points): held by the middle of the law with its
discrepancy on the whole fall (as before 2026-11-26), on differences to the mixture in use alone, and by upper ends of intervals of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.methods.trained_probes import DISCREPANCY
from opmix.mixing.effective_tokens_fit import fit_effective_tokens
from opmix.mixing.mixture import FloatArray

CELLS = Path(__file__).parent / "results" / "predictors-cells.json"
LIMIT = 5.0
NEAR = 3.0
LEVELS = (0.6, 0.9)
SHARES = (0.0, 0.005, 0.02, 0.06, 0.12)
LOOKS = 4
"""Of a probe in the file; the search takes the last two."""
STEP = 512


def percents(cell: dict[str, Any], kind: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Uniform: foretold with the discrepancy on the whole fall, on differences, and measured (D, 3); others (M, D): share and the same,
    with upper ends (M, D, 6); percent of the base's loss on the domain's own set."""
    count, stage = len(cell["domains"]), cell["lengths"]["stage"] * STEP
    base, names = np.array(cell["base"])[:count], cell["domains"]
    every, losses = np.array(cell["probes"][kind]["tokens"]), np.array(cell["probes"][kind]["losses"])
    kept = [i for i in range(1, len(every)) if (i - 1) % LOOKS >= LOOKS - 2]
    seen, uniform = every[kept].sum(axis=1), np.full((1, count), 1 / count)

    def fit(reference: FloatArray | None) -> Any:
        return fit_effective_tokens(
            every[kept] / seen[:, None],
            seen * stage,
            losses[kept],
            domains=names,
            metrics=[*names, *cell["targets"]],
            probes=[f"probe {(i - 1) // LOOKS}" for i in kept],
            stage_tokens=stage,
            unique_tokens=cell["available"],
            discrepancy=DISCREPANCY[kind],
            reference=reference,
        )

    told = [np.array([t["losses"], t["mixture"] + [0.0] * len(cell["targets"])]) for t in cell["trainings"]]
    own = np.array([[y[:count], p[:count]] for y, p in told])
    is_uniform = np.array([t["name"] == "uniform" for t in cell["trainings"]])
    at, others = own[is_uniform, 0].mean(axis=0), own[~is_uniform]
    whole, ours = fit(None), fit(uniform[0])
    P = np.vstack([uniform, others[:, 1]])
    middle = [100 * (f.law.predict(P)[:, :count] / base - 1) for f in (whole, ours)]
    drawn = ours.draws(num_draws=100, seed=0).predict(P)[..., :count]
    upper = [100 * (np.percentile(drawn, 50 + 50 * level, axis=0) / base - 1) for level in LEVELS]
    measured = 100 * (np.vstack([at[None], others[:, 0]]) / base - 1)
    stacked = np.stack([P, *middle, *upper, measured], axis=2)
    return stacked[0][:, [1, 2, -1]], stacked[1:], base


def lines() -> Iterator[str]:
    """The tables."""
    cells = json.loads(CELLS.read_text())["cells"]
    for kind in ("lora", "full"):
        found = [percents(cell, kind)[:2] for cell in cells.values()]
        level = np.vstack([f[0] for f in found])
        yield f"{kind}, {len(cells)} cells: uniform on a domain's own set, percent of the base's loss, mean (spread over sets)"
        for name, column in zip(("discrepancy on the whole fall", "on differences", "measured"), level.T, strict=True):
            yield f"  {name:30} {column.mean():+6.1f} ({column.std():.1f})"
        other = np.vstack([f[1].reshape(-1, 6) for f in found])
        yield f"  {'share':14}{'trainings':>10}{'broken':>8}   thought kept, of these broken, of those near: before | middle | upper ends"
        for low, high in zip(SHARES, (*SHARES[1:], 1.0), strict=True):
            mine = other[(other[:, 0] >= low) & (other[:, 0] < high)]
            broken = mine[:, -1] > LIMIT
            said = [_kept(told, broken) for told in mine[:, 1:-1].T]
            yield f"  {f'{low:g} to {high:g}':14}{len(mine):>10}{broken.sum():>8}   {' | '.join(said)}"


def _kept(told: FloatArray, broken: npt.NDArray[np.bool_]) -> str:
    kept, near = told <= LIMIT, (told <= LIMIT) & (told > LIMIT - NEAR)
    among = [f"{np.mean(broken[k]):4.0%}" if k.any() else "   -" for k in (kept, near)]
    return f"{np.mean(kept):4.0%} {among[0]} {among[1]} of {near.sum()}"


if __name__ == "__main__":
    print("\n".join(lines()))
