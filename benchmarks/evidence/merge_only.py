"""Is training needed at all? The adapters, merged at the optimum, against the full model trained on it: the paper's figure 10.

    python benchmarks/evidence/merge_only.py [--stages code medical speeches reviews] [--seeds 0 1] [--width 128] [--long]

Per stage of `regret.py`, mean test loss of: the base; `merged`, the interpolated probes of the search at its optimum; `adapter`, one
adapter of the same length trained on the optimum (from `opmix verify`); `trained`, the full model after the stage. With --long also
`merged_long`: probes trained for as many steps as the stage. Results go to results/merge_only.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from continual import ContinualStage
from peft import PeftModel
from regret import opened, stage_parser

from opmix.cli.console import Display, quiet_libraries
from opmix.probes.evaluation import evaluate

RESULTS = Path(__file__).parent / "results" / "merge_only.json"


def compared(stage: ContinualStage, long: bool) -> dict[str, Any]:
    """Mean test losses of every way to use the probes."""
    share = round(stage.search().verdict.optimum.mixture[stage.new], 4)
    losses = {
        "base": float(evaluate(stage.base, stage.test).losses.mean()),
        "merged": float(stage.simulated([share])[0]),
        "trained": stage.trained(share),
    }
    if long:
        stage.search("long", probes={"steps": stage.steps})
        losses["merged_long"] = float(stage.simulated([share], "long")[0])
    if direct := sorted((stage.home / "search" / "probes").glob("*-proposal")):  # last: the base is inside it then
        model = PeftModel.from_pretrained(stage.base, str(direct[0]))
        losses["adapter"] = float(evaluate(model, stage.test).losses.mean())
    gained = losses["base"] - losses["trained"]
    return {
        "share": share,
        "losses": losses,
        "part_of_training": {
            k: (losses["base"] - v) / gained for k, v in losses.items() if k not in ("base", "trained")
        },
        "perplexity": {k: float(np.exp(v)) for k, v in losses.items()},
    }


def main() -> None:
    arguments = stage_parser(__doc__)
    arguments.add_argument("--width", type=int, default=128)
    arguments.add_argument("--long", action="store_true")
    args = arguments.parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for name in args.stages:
            for seed in args.seeds:
                stage = opened(args, name, seed, args.width, display)
                made = {
                    "stage": name,
                    "seed": seed,
                    "width": args.width,
                    "steps": args.steps,
                    "probe_steps": args.probe_steps,
                    **compared(stage, args.long),
                }
                same = ("stage", "seed", "width", "steps", "probe_steps")
                rows = [r for r in rows if any(r[k] != made[k] for k in same)] + [made]
                record(RESULTS, {"rows": sorted(rows, key=lambda r: (-r["width"], r["stage"], r["seed"]))})
                display.note(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in made["losses"].items()))


if __name__ == "__main__":
    main()
