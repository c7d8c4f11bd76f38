"""Regret of the proposal in continual stages, against a grid of full trainings: the paper's figure 8, at small size.

    python benchmarks/evidence/regret.py --seeds 0 1 [--stages code medical speeches reviews] [--width 64]

A cell is one stage and seed: a base from scratch on old domains, one new domain, a search, and the full model trained for equal
tokens on every point of a nine-point grid (0.1 to 0.9 of the new domain, so 10 % replay is among them) and on the proposal. Mean test
loss decides; no search sees that split. Full trainings are kept, so a run that is broken off goes on. Cells are added to
results/regret.json. `five_stages.py` adds the stages of whole lives.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import base_model, packed, parser, record, shared_domains, tokenizer_for
from continual import GRID, ContinualStage

from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.progress import Progress

STAGES = {
    "code": (["medical_nih", "math_metamath"], "code_python"),
    "medical": (["bible_kjv", "reviews_movie"], "medical_nih"),
    "speeches": (["code_python", "docs_python"], "speeches_us"),
    "reviews": (["legal_licenses", "dictionary", "medical_nih"], "reviews_movie"),
}
RESULTS = Path(__file__).parent / "results" / "regret.json"
AGAIN = RESULTS.with_name("again.json")
"""Of searches with as many probe steps as they take by themselves."""


def opened(args: Any, name: str, seed: int, width: int, progress: Progress) -> ContinualStage:
    """A stage with its base, which is trained where it is not there yet."""
    old_names, new = STAGES[name]
    size = "" if width == 128 else f"-{width}"
    home = args.out / f"regret-{name}-seed{seed}-{args.base_steps}-{args.steps}-{args.probe_steps}{size}"
    home.mkdir(parents=True, exist_ok=True)
    domains = shared_domains(args.data, [*old_names, new])
    tokenizer = tokenizer_for(domains)
    data = packed(domains, tokenizer, args.out / "cache")
    old = Mixture.uniform(old_names)
    known = {n: data["train"][n] for n in old_names}
    base = base_model(home / "base", tokenizer, known, old, args.base_steps, seed, width)
    return ContinualStage(
        home=home,
        base=base,
        tokenizer=tokenizer,
        domains=domains,
        data=data,
        old=old,
        new=new,
        steps=args.steps,
        probe_steps=args.probe_steps,
        seed=seed,
        cache=args.out / "cache",
        progress=progress,
    )


def cell(args: Any, name: str, seed: int, width: int, progress: Progress) -> dict[str, Any]:
    """Search, grid and proposal of one stage and seed."""
    stage = opened(args, name, seed, width, progress)
    result = stage.search()
    share = round(result.verdict.optimum.mixture[stage.new], 4)
    grid = {p: stage.trained(p) for p in GRID}
    steps = {"base_steps": args.base_steps, "steps": args.steps, "probe_steps": args.probe_steps, "width": width}
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in steps.items())
    return {
        "stage": name,
        "order": f"{'+'.join(stage.old)}>{stage.new}",
        **stage.judged(result, grid, share),
        "arguments": steps,
        "command": f"python benchmarks/evidence/regret.py --stages {name} --seeds {seed} {options}",
    }


def add(made: dict[str, Any]) -> None:
    """Put a cell into the results, in the place of one with the same stage, seed and arguments."""
    file = RESULTS if made["arguments"]["probe_steps"] else AGAIN
    cells = json.loads(file.read_text())["cells"] if file.exists() else []
    same = ("stage", "seed", "arguments")
    cells = [c for c in cells if any(c[k] != made[k] for k in same)] + [made]
    record(file, {"cells": sorted(cells, key=lambda c: (c["model_size"], c["stage"], c["seed"]))})


def stage_parser(description: str | None) -> Any:
    """Arguments of everything that opens these stages."""
    arguments = parser(description)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments.add_argument("--base-steps", type=int, default=500)
    arguments.add_argument("--steps", type=int, default=250, help="of a stage")
    arguments.add_argument("--probe-steps", type=int, default=60)
    return arguments


def main() -> None:
    arguments = stage_parser(__doc__)
    arguments.add_argument("--width", type=int, default=128, help="of the model: 128 is 1.1 M parameters, 64 is 0.34 M")
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for name in args.stages:
            for seed in args.seeds:
                made = cell(args, name, seed, args.width, display)
                add(made)
                display.note(
                    "{stage} seed {seed}: proposal {proposal}, regret {regret:.2%}, 10 % replay {replay_regret:.2%}".format(
                        **made
                    )
                )


if __name__ == "__main__":
    main()
