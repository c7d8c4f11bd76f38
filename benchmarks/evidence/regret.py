"""Regret of the proposal in continual stages, against a grid of full trainings: the paper's figure 8, at small size.

    python benchmarks/evidence/regret.py --seeds 0 1 [--stages code medical speeches reviews]

A cell is one stage and seed: a base from scratch on old domains, one new domain, a search, and the full model trained for equal
tokens on every point of a nine-point grid (0.1 to 0.9 of the new domain, so 10 % replay is among them) and on the proposal. Mean test
loss decides; no search sees that split. Full trainings are kept, so a run that is broken off goes on. Cells are added to
results/regret.json.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import LENGTH, STEP_SEQUENCES, TRAINER, base_model, packed, parser, record, shared_domains, tokenizer_for

from opmix import search
from opmix.cli.console import Display, quiet_libraries
from opmix.lifecycle.verification import verify_run
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.training.full import train_on_mixture

STAGES = {
    "code": (["medical_nih", "math_metamath"], "code_python"),
    "medical": (["bible_kjv", "reviews_movie"], "medical_nih"),
    "speeches": (["code_python", "docs_python"], "speeches_us"),
    "reviews": (["legal_licenses", "dictionary", "medical_nih"], "reviews_movie"),
}
GRID = [round(0.1 * i, 1) for i in range(1, 10)]
RESULTS = Path(__file__).parent / "results" / "regret.json"


def cell(args: Any, stage: str, seed: int, display: Display) -> dict[str, Any]:
    old_names, new = STAGES[stage]
    domains = shared_domains(args.data, [*old_names, new])
    home = args.out / f"regret-{stage}-seed{seed}-{args.base_steps}-{args.steps}-{args.probe_steps}"
    home.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(domains)
    data = packed(domains, tokenizer, args.out / "cache")
    old, tokens = Mixture.uniform(old_names), args.steps * STEP_SEQUENCES * LENGTH
    base = base_model(home / "base", tokenizer, {n: data["train"][n] for n in old_names}, old, args.base_steps, seed)
    result = search(
        base, tokenizer, {n: {"train": d.train.paths[0], "valid": d.valid.paths[0]} for n, d in domains.items()}, budget=tokens,
        old_mixture=dict(old), sequence_length=LENGTH, trainer=TRAINER, seed=seed, probes={"steps": args.probe_steps},
        cache_dir=str((args.out / "cache").resolve()), out=home / "search", progress=display,
    )  # fmt: skip
    checked = verify_run(home / "search", model=base, tokenizer=tokenizer, progress=display).points[0]
    test = [held_out(n, rows, num=200, seed=seed) for n, rows in data["test"].items()]
    known = home / "trained.json"
    losses: dict[str, float] = json.loads(known.read_text()) if known.exists() else {}
    share = round(result.verdict.optimum.mixture[new], 4)
    for point in sorted({*GRID, share}):
        if str(point) in losses:
            continue
        model = copy.deepcopy(base)
        mixture = Mixture.of({"old": 1 - point, new: point}).expand({"old": old})
        train_on_mixture(
            model, data["train"], mixture, tokens=tokens, arguments=TRAINER, seed=seed + 1, output_dir=home / "trainer",
            progress=display, name=f"{stage}, seed {seed}: full training at {point:.3f}",
        )  # fmt: skip
        losses[str(point)] = float(evaluate(model, test).losses.mean())
        known.write_text(json.dumps(losses))
    grid = {p: losses[str(p)] for p in GRID}
    best = min(grid.values())
    return {
        "stage": stage, "order": f"{'+'.join(old_names)}>{new}", "seed": seed,
        "model_size": sum(p.numel() for p in base.parameters()), "regret": losses[str(share)] / best - 1,
        "replay_regret": grid[0.9] / best - 1, "interpolation_error": float((checked.direct - checked.proxy).mean()),
        "kl": float(checked.kl.mean()), "proposal": share, "interval": list(result.interval[new]),
        "best_of_grid": min(grid, key=grid.__getitem__), "action": result.verdict.decision.action,
        "probability": result.verdict.decision.probability, "losses": losses,
        "search_share_of_flops": result.json()["cost"]["search_share"],
        "arguments": {"base_steps": args.base_steps, "steps": args.steps, "probe_steps": args.probe_steps},
    }  # fmt: skip


def add(made: dict[str, Any]) -> None:
    """Put a cell into the results, in the place of one with the same stage, seed and arguments."""
    cells = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else []
    same = ("stage", "seed", "arguments")
    cells = [c for c in cells if any(c[k] != made[k] for k in same)] + [made]
    record(RESULTS, {"cells": sorted(cells, key=lambda c: (c["stage"], c["seed"]))})


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments.add_argument("--base-steps", type=int, default=500)
    arguments.add_argument("--steps", type=int, default=250, help="of a stage")
    arguments.add_argument("--probe-steps", type=int, default=60)
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for stage in args.stages:
            for seed in args.seeds:
                made = cell(args, stage, seed, display)
                add(made)
                display.note(
                    "{stage} seed {seed}: proposal {proposal}, regret {regret:.2%}, 10 % replay {replay_regret:.2%}".format(
                        **made
                    )
                )


if __name__ == "__main__":
    main()
