"""Searches of fixed length against adaptive ones: FLOPs, and the regret they pay, on the stages of regret.py.

    python benchmarks/evidence/adaptive.py [--seeds 0 1] [--stages code medical speeches reviews] [--long 750]

A proposal is scored on the nine full trainings of its cell (`losses` in results/regret.json): a polynomial of degree four through them,
by least squares, whose minimum counts as the best; so nothing is trained anew, and a regret is no surer than the trainings' scatter around
that curve (`scatter`). `--long STEPS` also trains on a grid for a stage of that length and scores the same proposals there: a search does
not depend on the stage's length, but its share of the FLOPs does.

Settings were chosen on code and medical (`development`; seed 1 of these was run once before the rule that weighs a closer look against
more training); the other cells are confirmation. Cells are added to results/adaptive.json; what was trained before is found.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import LENGTH, STEP_SEQUENCES, TRAINER, base_model, packed, parser, record, shared_domains, tokenizer_for
from regret import GRID, STAGES

from opmix import search
from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.training.full import train_on_mixture

HERE = Path(__file__).parent / "results"
RESULTS = HERE / "adaptive.json"
DEVELOPMENT = {(stage, seed) for stage in ("code", "medical") for seed in (0, 1)}
VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": {"probes": {}},
    "adaptive": {"probes": {"adaptive": True}},
    "adaptive, tolerance 0.1": {"probes": {"adaptive": True, "tolerance": 0.1}},
    "adaptive, tolerance 0.02": {"probes": {"adaptive": True, "tolerance": 0.02}},
}
LONG_GRID = [0.2, 0.3, 0.4, 0.5, 0.6]
DEGREE = 4


class Cell:
    """One stage and seed: base model, data, and what full trainings came to."""

    def __init__(self, args: Any, stage: str, seed: int, display: Display) -> None:
        self.args, self.stage, self.seed, self.display = args, stage, seed, display
        old_names, self.new = STAGES[stage]
        self.old = Mixture.uniform(old_names)
        self.domains = shared_domains(args.data, [*old_names, self.new])
        self.home = args.out / f"regret-{stage}-seed{seed}-{args.base_steps}-{args.steps}-{args.probe_steps}"
        self.home.mkdir(parents=True, exist_ok=True)
        self.tokenizer = tokenizer_for(self.domains)
        self.data = packed(self.domains, self.tokenizer, args.out / "cache")
        train = {n: self.data["train"][n] for n in old_names}
        self.base = base_model(self.home / "base", self.tokenizer, train, self.old, args.base_steps, seed)

    def search(self, variant: str) -> Any:
        """One search; regret.py's own folder serves the fixed one."""
        chosen = VARIANTS[variant]
        folder = "search" if variant == "fixed" else f"search-{variant.replace(', ', '-').replace(' ', '-')}"
        return search(
            self.base,
            self.tokenizer,
            {n: {"train": d.train.paths[0], "valid": d.valid.paths[0]} for n, d in self.domains.items()},
            budget=self.args.steps * STEP_SEQUENCES * LENGTH,
            old_mixture=dict(self.old),
            sequence_length=LENGTH,
            trainer=TRAINER,
            seed=self.seed,
            probes={"steps": self.args.probe_steps, **chosen["probes"]},
            proxies=chosen.get("proxies", {}),
            cache_dir=str((self.args.out / "cache").resolve()),
            out=self.home / folder,
            progress=self.display,
        )

    def known(self) -> dict[float, float]:
        """Mean test loss of full trainings by share of the new domain, from regret.py's results or its run folder."""
        cells = json.loads((HERE / "regret.json").read_text())["cells"]
        found = [c["losses"] for c in cells if (c["stage"], c["seed"]) == (self.stage, self.seed)]
        losses = found[0] if found else json.loads((self.home / "trained.json").read_text())
        return {p: losses[str(p)] for p in GRID}

    def trained(self, steps: int) -> dict[float, float]:
        """The same for a stage of another length; kept."""
        file = self.home / f"trained-{steps}.json"
        losses: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        test = [held_out(n, rows, num=200, seed=self.seed) for n, rows in self.data["test"].items()]
        for point in LONG_GRID:
            if str(point) in losses:
                continue
            model = copy.deepcopy(self.base)
            mixture = Mixture.of({"old": 1 - point, self.new: point}).expand({"old": self.old})
            train_on_mixture(
                model,
                self.data["train"],
                mixture,
                tokens=steps * STEP_SEQUENCES * LENGTH,
                arguments=TRAINER,
                seed=self.seed + 1,
                output_dir=self.home / "trainer",
                progress=self.display,
                name=f"{steps} steps at {point}",
            )
            losses[str(point)] = float(evaluate(model, test).losses.mean())
            file.write_text(json.dumps(losses))
        return {p: losses[str(p)] for p in LONG_GRID}


class Curve:
    """Loss against the new domain's share, smoothed."""

    def __init__(self, losses: dict[float, float], degree: int = DEGREE) -> None:
        shares, values = np.array(list(losses)), np.array(list(losses.values()))
        self.fit = np.polynomial.Polynomial.fit(shares, values, degree)
        inside = np.linspace(shares.min(), shares.max(), 1001)
        self.best = float(self.fit(inside).min())
        self.at = float(inside[self.fit(inside).argmin()])
        left = len(shares) - degree - 1
        self.scatter = float(np.sqrt(np.sum((self.fit(shares) - values) ** 2) / left)) / self.best

    def regret(self, share: float) -> float:
        """Share of the best loss."""
        return float(self.fit(share)) / self.best - 1


def rows_of(cell: Cell, variants: list[str], long: int | None) -> list[dict[str, Any]]:
    curve = Curve(cell.known())
    far = Curve(cell.trained(long), 2) if long else None
    made = []
    for variant in variants:
        result = cell.search(variant)
        share, content = result.verdict.optimum.mixture[cell.new], result.json()
        looks = content.get("adaptive", {})
        flops = float(sum(content["cost"]["flops"].values()))
        part = flops / result.training_flops
        row = {
            "stage": cell.stage,
            "seed": cell.seed,
            "role": "development" if (cell.stage, cell.seed) in DEVELOPMENT else "confirmation",
            "variant": variant,
            "probe_steps": looks.get("steps", cell.args.probe_steps),
            "of": cell.args.probe_steps,
            "looks": len(looks.get("segments", [1])),
            "proposal": share,
            "interval": list(result.interval[cell.new]),
            "action": result.verdict.decision.action,
            "search_flops": flops,
            "stage_flops": result.training_flops,
            "share_of_stage": part,
            "steps_of_stage_for_ten_percent": 10 * part * cell.args.steps,
            "regret": curve.regret(share),
            "regret_of_half": curve.regret(0.5),
            "scatter": curve.scatter,
            "best_share": curve.at,
            "segments": looks.get("segments", []),
        }
        if far is not None and long:
            row["long"] = {
                "steps": long,
                "regret": far.regret(share),
                "regret_of_half": far.regret(0.5),
                "scatter": far.scatter,
                "share_of_stage": part * cell.args.steps / long,
                "best_share": far.at,
            }
        made.append(row)
        cell.display.note(
            f"{cell.stage} seed {cell.seed} {variant}: {row['probe_steps']} steps, {row['share_of_stage']:.1%} of the stage, "
            f"proposal {share:.3f}, regret {row['regret']:.2%}"
        )
    return made


def add(rows: list[dict[str, Any]]) -> None:
    """Put rows into the results, in the place of those of the same cell and variant, with means by role and variant."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    same = {(r["stage"], r["seed"], r["variant"]): r for r in [*known, *rows]}
    for key, row in same.items():  # a long stage that was trained before is not forgotten
        before = next((r for r in known if (r["stage"], r["seed"], r["variant"]) == key), {})
        if "long" in before and "long" not in row:
            row["long"] = before["long"]
    ordered = [same[key] for key in sorted(same)]
    record(RESULTS, {"summary": summary(ordered), "rows": ordered})


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and worst by role and variant, and the paired difference of regret to the fixed search."""
    made = []
    fixed = {(r["stage"], r["seed"]): r for r in rows if r["variant"] == "fixed"}
    for role in ("development", "confirmation"):
        for variant in VARIANTS:
            mine = [r for r in rows if (r["role"], r["variant"]) == (role, variant)]
            if not mine:
                continue
            paired = [
                r["regret"] - fixed[r["stage"], r["seed"]]["regret"] for r in mine if (r["stage"], r["seed"]) in fixed
            ]
            made.append(
                {
                    "role": role,
                    "variant": variant,
                    "cells": len(mine),
                    "share_of_stage": _mean(mine, "share_of_stage"),
                    "steps_of_stage_for_ten_percent": _mean(mine, "steps_of_stage_for_ten_percent"),
                    "regret": _mean(mine, "regret"),
                    "worst_regret": max(r["regret"] for r in mine),
                    "scatter": _mean(mine, "scatter"),
                    "regret_of_half": _mean(mine, "regret_of_half"),
                    "regret_over_fixed": float(np.mean(paired)) if paired else None,
                    "error_of_that": float(np.std(paired, ddof=1) / np.sqrt(len(paired))) if len(paired) > 1 else None,
                }
            )
    return made


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows]))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments.add_argument("--base-steps", type=int, default=500)
    arguments.add_argument("--steps", type=int, default=250, help="of the stage")
    arguments.add_argument("--probe-steps", type=int, default=60)
    arguments.add_argument("--long", type=int, help="also score on full trainings of so many steps")
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for stage in args.stages:
            for seed in args.seeds:
                add(rows_of(Cell(args, stage, seed, display), args.variants, args.long))


if __name__ == "__main__":
    main()
