"""What the proposal depends on: one setting of the search at a time, on stages whose grid of full trainings is known.

    python benchmarks/evidence/sensitivity.py [--stages code] [--seeds 0] [--width 64]

Each variant is a search from the stage's base with one setting changed. Its regret is read off a smooth curve (a quartic in the share)
through the nine full trainings of `regret.py`, which takes their noise out and needs no further training: small differences of regret can
be told apart where single trainings could not. The search's own seed is a variant too: what it changes is noise. Results go to
results/sensitivity.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from continual import GRID, ContinualStage
from regret import opened, stage_parser

from opmix.cli.console import Display, quiet_libraries

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "as it is": [{}],
    "seed": [{"seed": 1}, {"seed": 2}],
    "probes.rank": [{"probes": {"rank": r, "alpha": 2.0 * r}} for r in (4, 64)],
    "probes.steps": [{"probes": {"steps": s}} for s in (15, 30, 120)],
    "probes.learning_rate_multiplier": [{"probes": {"learning_rate_multiplier": m}} for m in (1.0, 4.0)],
    "probes.share": [{"probes": {"share": s}} for s in (0.75, 1.0)],
    "probes.joint": [{"probes": {"joint": False}}],
    "proxies.count": [{"proxies": {"count": c}} for c in (4, 17)],
    "proxies.eval_sequences": [{"proxies": {"eval_sequences": n}} for n in (16, 200)],
    "solve.kl": [{"solve": {"kl": k}} for k in (0.0, 0.2)],
}
SAME_PROBES = ("probes.joint", "proxies.count", "solve.kl")
"""Variants that need no other probes than the default search has."""
RESULTS = Path(__file__).parent / "results" / "sensitivity.json"


def curve(stage: ContinualStage) -> tuple[np.poly1d, float]:
    """Mean test loss by share of the new domain, and the scatter of the nine trainings around it, nats."""
    losses = np.array([stage.trained(p) for p in GRID])
    fitted = np.poly1d(np.polyfit(GRID, losses, 4))
    return fitted, float(np.sqrt(np.sum((fitted(np.array(GRID)) - losses) ** 2) / (len(GRID) - 5)))


def searched(stage: ContinualStage, setting: str, change: dict[str, Any]) -> dict[str, Any]:
    """One variant: proposal, interval and cost."""
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in change.items()}
    settings["probes"] = {"steps": stage.probe_steps, **settings.get("probes", {})}
    folder = "search" if not change else "variant-" + "".join(c if c.isalnum() else "-" for c in json.dumps(change))
    if setting in SAME_PROBES and not (stage.home / folder).exists():
        shutil.copytree(stage.home / "search", stage.home / folder)
    result = stage.search(folder, **settings)
    low, high = result.interval[stage.new]
    return {
        "setting": setting,
        "change": change,
        "proposal": float(result.verdict.optimum.mixture[stage.new]),
        "interval": [low, high],
        "probability": result.verdict.decision.probability,
        "search_share": result.json()["cost"]["search_share"],
    }


def main() -> None:
    arguments = stage_parser(__doc__)
    arguments.set_defaults(stages=["code"], seeds=[0])
    arguments.add_argument("--width", type=int, default=64, help="of the model: 64 is 0.34 M parameters, 128 is 1.1 M")
    args = arguments.parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for name in args.stages:
            for seed in args.seeds:
                stage = opened(args, name, seed, args.width, display)
                smooth, scatter = curve(stage)
                line = np.linspace(0.1, 0.9, 801)
                best = line[smooth(line).argmin()]
                for setting, changes in VARIANTS.items():
                    for change in changes:
                        made = {"stage": name, "seed": seed, "width": args.width, **searched(stage, setting, change)}
                        made |= {
                            "regret": float(smooth(made["proposal"]) / smooth(best) - 1),
                            "best": float(best),
                            "scatter": scatter,
                        }
                        same = ("stage", "seed", "width", "setting", "change")
                        rows = [r for r in rows if any(r[k] != made[k] for k in same)] + [made]
                        record(RESULTS, {"rows": rows})
                        display.note(
                            "{setting} {change}: {proposal:.3f}, regret {regret:.3%}, search {search_share:.2f}".format(
                                **made
                            )
                        )


if __name__ == "__main__":
    main()
