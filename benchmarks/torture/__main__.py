"""Reliability, counted: `make torture`.

    python benchmarks/torture --seed 7 --scale short --only crashes kills

Every part prints what it did and what went wrong, with what reproduces it; the JSON holds both. Exits 1 if anything was lost. The seed is
today's unless it is given.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))

from common import record
from process import work

PARTS = ("crashes", "kills", "problems", "fuzz", "locks")
MOST = {
    "short": {"crashes": 12, "kills": 8, "problems": 400, "fuzz": 20_000, "locks": 100},
    "whole": {"crashes": 250, "kills": 300, "problems": 10_000, "fuzz": 1_000_000, "locks": 400},
    "long": {"crashes": 10**6, "kills": 3_000, "problems": 100_000, "fuzz": 10**7, "locks": 4_000},
}
SECONDS = {"short": 120.0, "whole": 1200.0, "long": 6 * 3600.0}
SHARE = {"crashes": 0.4, "kills": 0.2, "problems": 0.15, "fuzz": 0.2, "locks": 0.05}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=int(time.time()) // 86400)
    arguments.add_argument("--scale", choices=list(MOST), default="whole")
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--out", type=Path, default=Path("runs/torture.json"))
    args = arguments.parse_args()
    sys.stdout.write(f"seed {args.seed}, {args.scale}\n")
    results: dict[str, Any] = {}
    total = sum(SHARE[name] for name in args.only)
    base = Path(tempfile.mkdtemp(prefix="torture-"))
    for name in args.only:
        started = time.monotonic()
        limit = SECONDS[args.scale] * SHARE[name] / total
        settings = {"seed": args.seed, "most": MOST[args.scale][name], "seconds": limit}
        tasks = [(name, base / f"{name}-{k}", {**settings, "part": (k, args.processes)}) for k in range(args.processes)]
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            found = pool.map(work, tasks, chunksize=1)
        done: dict[str, int] = {}
        for part in found:
            for kind, count in part["done"].items():
                done[kind] = done.get(kind, 0) + count
        wrong = [text for part in found for text in part["wrong"]]
        results[name] = {"done": done, "wrong": wrong, "seconds": round(time.monotonic() - started)}
        counted = ", ".join(f"{count:,} {kind}" for kind, count in done.items())
        sys.stdout.write(f"{name}: {counted}; {len(wrong)} wrong ({results[name]['seconds']} s)\n")
        sys.stdout.write("".join(f"  {text}\n" for text in wrong[:20]))
        sys.stdout.flush()
    shutil.rmtree(base, ignore_errors=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record(args.out, {"seed": args.seed, "scale": args.scale, "parts": results})
    return 1 if any(part["wrong"] for part in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
