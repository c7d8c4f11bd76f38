"""What predicts full training? A race of predictors on trained probes, with choosing and confirming cells held apart.

    python benchmarks/evidence/predictors.py generate [--cells packages-0.3M-young ...] [--use choosing] [--data ../shared/data]

`generate` makes the raw numbers of each cell under `--out` (resumable).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from predictor_cells import POOLS, SIZES, Cell
from predictor_runs import Laboratory

from opmix.cli.console import quiet_libraries


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate"])
    parser.add_argument("--cells", nargs="+", default=[])
    parser.add_argument("--use", nargs="+", default=["choosing", "confirming"])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/predictors"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    quiet_libraries()
    {"generate": generate}[args.what](args)


if __name__ == "__main__":
    main()
