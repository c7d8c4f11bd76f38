"""Is a new domain worth adding? What searches say in the stages of a life: with 90/10 probes and with pure ones.

    python benchmarks/evidence/adding.py [--orders forward backward] [--seeds 0]

Mixtures without the new domain lie outside what 90/10 probes span: their law is extrapolated there. With pure probes (`probes.share: 1`)
the `old` probe is trained on just that mixture, so it is measured. All searches start from the models of OP-Mix's life; the truth is a
full training without the new domain. Results go to results/adding.json; the recorded ones hold a third design, `pure, arbiter`, whose
setting is gone since d824eca.
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
from life import lengths, life_parser, lives

from opmix.cli.console import Display, quiet_libraries

DESIGNS = {"default": ("search", 0.9), "pure": ("pure", 1.0)}
"""Folder of the search, share of a probe's own data."""
RESULTS = Path(__file__).parent / "results" / "adding.json"


def asked(stage: ContinualStage) -> dict[str, Any]:
    """What each design says, and what full training says; gains in nats over leaving the domain out."""
    trained = {float(p): v for p, v in json.loads((stage.home / "trained.json").read_text()).items()}
    without = stage.trained(0.0)
    shares = np.array(sorted({**trained, 0.0: without}))
    losses = np.array([{**trained, 0.0: without}[p] for p in shares])
    found = {}
    for name, (folder, share) in DESIGNS.items():
        probes = {"steps": stage.probe_steps, "share": share}
        result = stage.search(folder, probes=probes)
        decision, optimum = result.verdict.decision, float(result.verdict.optimum.mixture[stage.new])
        found[name] = {
            "action": decision.action,
            "probability": decision.probability,
            "predicted_gain": decision.gain,
            "direct_gain": decision.direct_gain,
            "proposal": optimum,
            "search_share": result.json()["cost"]["search_share"],
            "true_gain": without - float(np.interp(optimum, shares, losses)),
        }
    return {"without": without, "best": float(losses.min()), **found}


def main() -> None:
    args = life_parser(__doc__).parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for life in lives(args, display):
            for number in range(1, len(life.new) + 1):
                life.lived(number)
                made = {
                    "order": life.order,
                    "stage": number,
                    "seed": life.seed,
                    "arguments": lengths(args),
                    **asked(life.stage(number)),
                }
                same = ("order", "stage", "seed", "arguments")
                rows = [r for r in rows if any(r[k] != made[k] for k in same)] + [made]
                record(RESULTS, {"rows": rows})
                said = ", ".join(
                    f"{d} {made[d]['action']} ({made[d]['probability']:.0%}, predicted {made[d]['predicted_gain']:+.3f}, "
                    f"true {made[d]['true_gain']:+.3f})"
                    for d in DESIGNS
                )
                display.note(f"{life.order} {number}: {said}")


if __name__ == "__main__":
    main()
