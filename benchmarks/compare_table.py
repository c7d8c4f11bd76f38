"""A finished comparison as a table for docs/evidence.md, its figures kept in results/.

    python benchmarks/compare_table.py runs/compare-midtraining [--keep benchmarks/results/compare_midtraining.json]

Prints Markdown, best first: mean test loss, difference to the reference paired by seed, forgetting, cost. Entrants of one seed say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import record


def spread(value: dict[str, Any] | None, digits: int = 3, *, sign: bool = False) -> str:
    """`1.234 ± 0.005`."""
    if not value or value["mean"] is None:
        return ""
    deviation = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:{'+' if sign else ''}.{digits}f}{deviation}"


def rows(content: dict[str, Any]) -> list[str]:
    """Markdown."""
    several = len({row["seeds"] for row in content["table"]}) > 1
    head = [
        "method",
        *(["seeds"] if several else []),
        "test loss",
        f"against {content['reference']}",
        "forgotten",
        "search / training",
        "FLOPs in all",
    ]
    made = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in sorted(content["table"], key=lambda r: r.get("difference", {"mean": 0.0})["mean"]):
        trained = row["training_flops"]["mean"]
        searched = f"{row['search_flops']['mean'] / trained:.0%}" if trained else "no training"
        cells = [f"`{row['entrant']}`", *([str(row["seeds"])] if several else []), spread(row["mean_loss"])]
        cells += [spread(row.get("difference"), sign=True), spread(row["forgetting"], sign=True), searched]
        cells.append(f"{row['total_flops']['mean']:.2g}")
        made.append("| " + " | ".join(cells) + " |")
    return made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--keep", type=Path, help="write the figures there, with machine and date")
    args = arguments.parse_args()
    content = json.loads((args.run / "compare.json").read_text())
    sys.stdout.write("\n".join(rows(content)) + "\n")
    if args.keep is not None:
        lives = {
            name: {
                seed: {k: life[k] for k in ("mean_loss", "losses", "forgetting", "cost")}
                | {"mixtures": {s["name"]: s["mixture"] for s in life["stages"]}}
                for seed, life in entrant["seeds"].items()
            }
            for name, entrant in content["entrants"].items()
        }
        record(args.keep, {"reference": content["reference"], "table": content["table"], "lives": lives})


if __name__ == "__main__":
    main()
