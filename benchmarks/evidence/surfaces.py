"""Simulated against true loss surface, along the line from old data to new: the paper's figure 7 at small size.

    python benchmarks/evidence/surfaces.py [--stages code medical] [--seeds 0 1] [--widths 128 64] [--orders forward --life-seeds 0]

True: mean test loss of full trainings on the nine-point grid, as `regret.py` keeps them (trained here where missing), and on those of
its points that `five_stages.py` trained. Simulated: the paper's proxies, weighted sums of the `old` and the `new` probe, on the first 50 of
those test sequences a domain. Levels differ (short adapters against full training), so the error is that of the shape, after both means
are taken off.
Results go to results/surfaces.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from continual import GRID, ContinualStage
from five_stages import COARSE
from life import Life
from regret import STAGES, add, cell, opened, stage_parser
from scipy.stats import spearmanr

from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import FloatArray

RESULTS = Path(__file__).parent / "results" / "surfaces.json"

SEQUENCES = 50
"""Test sequences a domain for the simulated surface: all its points share them, so their choice moves the level, not the shape."""


def surface(stage: ContinualStage, true: Mapping[float, float]) -> dict[str, Any]:
    """Both surfaces of a stage at the same shares, and how far apart they are."""
    shares = sorted(true)
    losses = np.array([true[p] for p in shares])
    simulated = stage.simulated(shares, num=SEQUENCES)
    shape = (simulated - simulated.mean()) - (losses - losses.mean())
    lowest = [minimum(np.array(shares), values) for values in (losses, simulated)]
    return {
        "new": stage.new,
        "old": list(stage.old),
        "seed": stage.seed,
        "model_size": sum(p.numel() for p in stage.base.parameters()),
        "shares": shares,
        "true": losses.tolist(),
        "simulated": simulated.tolist(),
        "level": float((simulated - losses).mean()),
        "shape_error": float(np.sqrt(np.mean(shape**2))),
        "range": float(np.ptp(losses)),
        "spearman": float(spearmanr(losses, simulated).statistic),
        "pearson": float(np.corrcoef(losses, simulated)[0, 1]),
        "true_optimum": lowest[0],
        "simulated_optimum": lowest[1],
        "regret": float(losses[simulated.argmin()] / losses.min() - 1),
        "probe_steps": stage.probe_steps,
        "steps": stage.steps,
    }


def minimum(shares: FloatArray, losses: FloatArray) -> float:
    """Of the parabola through the lowest point and its neighbours."""
    middle = int(np.clip(losses.argmin(), 1, len(losses) - 2))
    near = slice(middle - 1, middle + 2)
    a, b, _ = np.polyfit(shares[near], losses[near], 2)
    return float(np.clip(-b / (2 * a), shares[near][0], shares[near][-1])) if a > 0 else float(shares[losses.argmin()])


def regret_stages(args: Any, display: Display) -> list[tuple[str, ContinualStage, dict[float, float]]]:
    """The stages of regret.py; a cell that was never made is made."""
    found = []
    for width in args.widths:
        for name in args.stages:
            for seed in args.seeds:
                stage = opened(args, name, seed, width, display)
                known = stage.home / "trained.json"
                trained = json.loads(known.read_text()) if known.exists() else {}
                if any(str(p) not in trained for p in GRID):
                    add(cell(args, name, seed, width, display))
                found.append((name, stage, {p: stage.trained(p) for p in GRID}))
    return found


def life_stages(args: Any, display: Display) -> list[tuple[str, ContinualStage, dict[float, float]]]:
    """The stages of five_stages.py's lives, with its default lengths."""
    found = []
    for seed in args.life_seeds:
        for order in args.orders:
            life = Life(order=order, seed=seed, out=args.lives or args.out, data_folder=args.data, progress=display)
            for number in range(1, len(life.new) + 1):
                life.lived(number)
                stage = life.stage(number)
                found.append((f"{order} {number}", stage, stage.swept(COARSE)))
    return found


def parsed() -> argparse.Namespace:
    arguments = stage_parser(__doc__)
    arguments.set_defaults(stages=list(STAGES))
    arguments.add_argument("--widths", type=int, nargs="*", default=[128])
    arguments.add_argument("--orders", nargs="*", default=["forward", "backward"])
    arguments.add_argument("--life-seeds", type=int, nargs="*", default=[0])
    arguments.add_argument(
        "--lives", type=Path, default=None, help="run folder of five_stages.py, if another than --out"
    )
    return arguments.parse_args()


def main() -> None:
    args = parsed()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for name, stage, true in [*regret_stages(args, display), *life_stages(args, display)]:
            made = {"stage": name, **surface(stage, true)}
            key = ("stage", "seed", "model_size", "steps", "probe_steps")
            rows = [r for r in rows if any(r[k] != made[k] for k in key)] + [made]
            record(RESULTS, {"rows": sorted(rows, key=lambda r: (-r["model_size"], r["stage"], r["seed"]))})
            display.note(
                "{stage}, seed {seed}: shape error {shape_error:.4f} of {range:.4f}, Spearman {spearman:.2f}, optimum "
                "{simulated_optimum:.2f} against {true_optimum:.2f}, regret {regret:.2%}".format(**made)
            )


if __name__ == "__main__":
    main()
