"""What predicts full training? A race of predictors on trained probes, with choosing and confirming cells held apart (predictors.md).

    python benchmarks/evidence/predictors.py generate [--cells packages-0.3M-young ...] [--use choosing] [--data ../shared/data]
    python benchmarks/evidence/predictors.py propose [--predictors REGEX]
    python benchmarks/evidence/predictors.py analyse

`generate` makes the raw numbers of each cell under `--out`: base, full trainings that no predictor chose, probes with their looks, averaged
points, swarm, gradients. `propose` trains on each predictor's own optimum, `analyse` writes results/predictors.json. All are resumable,
and `propose` and `analyse` need nothing but the raw numbers, so a new predictor is judged without training its probes again. Losses of
all probes, looks and full trainings are in results/predictors-cells.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from predictor_cells import POOLS, SIZES, Cell
from predictor_laws import Numbers
from predictor_race import PREDICTORS, TRAINED, foretold, train_candidates
from predictor_runs import Laboratory
from predictor_scores import raced

from opmix.cli.console import quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.runs.files import write_text

RESULTS = Path(__file__).parent / "results" / "predictors.json"


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Cells asked for whose text this machine has, the small ones first."""
    for size in SIZES:
        for age in ("young", "grown"):
            for pool in POOLS.values():
                cell = Cell(pool, size, age, args.out, args.data)
                wanted = cell.name in args.cells if args.cells else size in args.sizes and pool.use in args.use
                if not wanted:
                    continue
                try:
                    cell.text.write()
                except LookupError as lacking:
                    print(f"{cell.name}: left out, {lacking}")
                    continue
                yield cell


def generate(args: argparse.Namespace) -> None:
    for cell in cells(args):
        started = time.perf_counter()
        Laboratory(cell).raw()
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {time.perf_counter() - started:.0f} s", flush=True)


def propose(args: argparse.Namespace) -> None:
    for cell in cells(args):
        laboratory = Laboratory(cell)
        numbers = Numbers(laboratory.folder)
        for predictor in PREDICTORS:
            if not re.search(args.predictors, predictor.key):
                continue
            told = foretold(predictor, numbers, numbers.uniform[None])
            for objective in TRAINED:
                laboratory.full_training(Mixture(cell.domains, told.optima[objective]), f"{predictor.key}, {objective}")
                if predictor.candidates:
                    train_candidates(predictor, laboratory, numbers, objective)
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {len(laboratory.trainings())} full trainings", flush=True)


def analyse(args: argparse.Namespace) -> None:
    done = [Numbers(args.out / cell.name) for cell in cells(args) if (args.out / cell.name / "gradients.json").exists()]
    result = raced(done)
    told = {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "torch_threads": torch.get_num_threads()}
    for r in result["rows"]:  # full trainings are in the other file
        r.pop("measured")
        if r["objective"] not in TRAINED:
            r.pop("foretold")
    write_lines(RESULTS, {**told, **result})
    write_lines(RESULTS.with_name("predictors-cells.json"), {"cells": {n.folder.name: n.json() for n in done}})


def write_lines(file: Path, content: dict[str, Any]) -> None:
    """JSON with one row, or one entry of a mapping, a line: small, and a change shows where it is."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            inner = ",\n".join(json.dumps(v) for v in value)
            parts.append(f"{json.dumps(key)}: [\n{inner}\n]")
        elif isinstance(value, dict):
            inner = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    write_text(file, "{\n" + ",\n".join(parts) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "propose", "analyse"])
    parser.add_argument("--cells", nargs="+", default=[])
    parser.add_argument("--use", nargs="+", default=["choosing", "confirming"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--predictors", default="", help="part of `name / probes`, a regular expression")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/predictors"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    quiet_libraries()
    {"generate": generate, "propose": propose, "analyse": analyse}[args.what](args)


if __name__ == "__main__":
    main()
