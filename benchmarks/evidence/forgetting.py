"""Forgetting in a five-stage life: new data only, 10 % replay (two kinds) and OP-Mix: the paper's figure 3 at small size.

    python benchmarks/evidence/forgetting.py [--orders forward backward] [--seeds 0] [--ways ...]

Forgetting is the rise of test loss on a domain known before: over a stage (`per_stage`), and from when it was learned to the end of the
life (`at_end`). What is learned of the new domains is beside it, since a model that learns nothing forgets nothing. All ways share base,
tokens, schedule (WSD) and order; OP-Mix's searches cost extra, see `retraining.py`. Results go to results/forgetting.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from life import WAYS, Life, lengths, life_parser, lives

from opmix.cli.console import Display, quiet_libraries

RESULTS = Path(__file__).parent / "results" / "forgetting.json"


def lived(life: Life, way: str) -> dict[str, Any]:
    """One way of living: losses after every stage, and what was forgotten."""
    stages = range(1, len(life.new) + 1)
    for number in stages:
        if way == "opmix":
            life.lived(number)
        else:
            life.fixed(way, number)
    losses = [life.losses(way, number) for number in (0, *stages)]
    rises = {n: {d: losses[n][d] - losses[n - 1][d] for d in life.known(n - 1)} for n in stages}
    learned = dict.fromkeys(life.known(0), 0) | {d: i + 1 for i, d in enumerate(life.new)}
    last = len(life.new)
    at_end = {d: losses[last][d] - losses[when][d] for d, when in learned.items() if when < last}
    each = [rise for found in rises.values() for rise in found.values()]
    return {
        "way": way,
        "losses": losses,
        "per_stage": float(np.mean(each)),
        "per_stage_worst": max(each),
        "rises": rises,
        "at_end": float(np.mean(list(at_end.values()))),
        "at_end_worst": max(at_end.values()),
        "at_end_by_domain": at_end,
        "new_domain": float(np.mean([losses[i + 1][d] for i, d in enumerate(life.new)])),
        "all_at_end": float(np.mean(list(losses[last].values()))),
    }


def main() -> None:
    arguments = life_parser(__doc__)
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = arguments.parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for life in lives(args, display):
            for way in args.ways:
                made = {"order": life.order, "seed": life.seed, "arguments": lengths(args), **lived(life, way)}
                rows = [r for r in rows if any(r[k] != made[k] for k in ("order", "seed", "way", "arguments"))] + [made]
                record(RESULTS, {"rows": rows})
                display.note(
                    "{order}, seed {seed}, {way}: forgotten {per_stage:+.4f} a stage (worst {per_stage_worst:+.4f}), {at_end:+.4f} at "
                    "the end; new domains {new_domain:.4f}, all at the end {all_at_end:.4f}".format(**made)
                )


if __name__ == "__main__":
    main()
