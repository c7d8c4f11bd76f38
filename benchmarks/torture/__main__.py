"""Reliability, counted: `make torture`.

    python benchmarks/torture --seed 7 --scale short --only crashes kills
    python benchmarks/torture --only fuzz --seconds 600 --out benchmarks/results/torture.json
    python benchmarks/torture --table          # docs/reliability.md from benchmarks/results/torture.json

Every part prints what it did and what went wrong, with what reproduces it; the JSON holds both. A part that is run again with other seeds
into the same file adds to it (`--fresh`: replaces what is there). Exits 1 if anything was lost. The seed is today's unless it is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(1, str(Path(__file__).parents[1]))

from counts import KEPT, add, write_table
from process import spread

PARTS = ("crashes", "deaths", "kills", "inputs", "problems", "fuzz", "locks", "soak")
MOST = {
    "short": {
        "crashes": 12,
        "deaths": 20,
        "kills": 8,
        "inputs": 60,
        "problems": 400,
        "fuzz": 20_000,
        "locks": 104,
        "soak": 10,
    },
    "whole": {
        "crashes": 125,
        "deaths": 300,
        "kills": 300,
        "inputs": 1050,
        "problems": 10_000,
        "fuzz": 1_000_000,
        "locks": 400,
        "soak": 100,
    },
    "long": {
        "crashes": 10**6,
        "deaths": 3_000,
        "kills": 3_000,
        "inputs": 10_000,
        "problems": 100_000,
        "fuzz": 10**7,
        "locks": 4_000,
        "soak": 10**6,
    },
}
SECONDS = {"short": 120.0, "whole": 1170.0, "long": 6 * 3600.0}
SHARE = {
    "crashes": 0.36,
    "deaths": 0.12,
    "kills": 0.14,
    "inputs": 0.07,
    "problems": 0.1,
    "fuzz": 0.14,
    "locks": 0.03,
    "soak": 0.04,
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=int(time.time()) // 86400)
    arguments.add_argument("--scale", choices=list(MOST), default="whole")
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--seconds", type=float, help="of each part, instead of its share of the whole")
    arguments.add_argument("--out", type=Path, default=Path("runs/torture.json"))
    arguments.add_argument("--fresh", action="store_true", help="forget what the file holds of these parts")
    arguments.add_argument("--table", action="store_true", help=f"write docs/reliability.md's table from {KEPT}")
    args = arguments.parse_args()
    if args.table:
        return write_table()
    sys.stdout.write(f"seed {args.seed}, {args.scale}\n")
    total, good = sum(SHARE[name] for name in args.only), True
    for name in args.only:
        began = time.monotonic()
        limit = args.seconds or SECONDS[args.scale] * SHARE[name] / total
        done, wrong, told = spread(name, args.seed, MOST[args.scale][name], limit, args.processes)
        seconds = round(time.monotonic() - began)
        facts = {"seed": args.seed, "scale": args.scale, "processes": args.processes, "seconds": seconds}
        add(args.out, name, {**facts, "done": done, "wrong": wrong, "told": told}, fresh=args.fresh)
        counted = ", ".join(f"{count:,} {kind}" for kind, count in done.items())
        sys.stdout.write(f"{name}: {counted}; {len(wrong)} wrong ({seconds} s)\n")
        sys.stdout.write("".join(f"  {text}\n" for text in wrong[:20]))
        sys.stdout.flush()
        good = good and not wrong
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
