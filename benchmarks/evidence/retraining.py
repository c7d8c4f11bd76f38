"""A life by OP-Mix against retraining from scratch on everything at every stage: the paper's figure 9 at small size.

    python benchmarks/evidence/retraining.py [--orders forward backward] [--seeds 0] [--stages 1 3 5] [--rate 0.002]

At each stage the retrained model sees the uniform mixture of all domains so far for as many tokens as the life has had, base included, with
one schedule (WSD). The life's FLOPs are those of base, stages and searches; those of retraining are of a new model at every stage, as
somebody pays who wants a model after each; the cost of the stages that were not trained for this is known without training. Results go to
results/retraining.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import record
from life import Life, lengths, life_parser, lives

from opmix.cli.console import Display, quiet_libraries

RATE = 3e-3
"""Of training from scratch, as the base's; the stages have 2e-3."""
RESULTS = Path(__file__).parent / "results" / "retraining.json"


def compared(life: Life, stages: list[int], rate: float) -> dict[str, Any]:
    """Losses and FLOPs of both."""
    way = "retrained" if rate == RATE else f"retrained-{rate:g}"
    done = [life.lived(number) for number in range(1, max(stages) + 1)]
    rows = []
    for number in stages:
        life.retrained(number, way, rate)
        known = life.known(number)
        both = {"opmix": life.losses("opmix", number), "retrained": life.losses(way, number)}
        means = {w: float(np.mean([found[d] for d in known])) for w, found in both.items()}
        by = {d: both["opmix"][d] - both["retrained"][d] for d in known}
        rows.append({"stage": number, **means, "gap": means["opmix"] / means["retrained"] - 1, "difference": by})
    last = max(stages)
    base = life.base_steps * life.step_flops
    training, search = last * life.steps * life.step_flops, sum(d["search_flops"] for d in done)
    scratch = base + sum(base + n * life.steps * life.step_flops for n in range(1, last + 1))
    return {
        "stages": rows,
        "flops": {"base": base, "training": training, "search": search, "retraining": scratch},
        "saved": 1 - (base + training + search) / scratch,
        "saved_without_search": 1 - (base + training) / scratch,
        "saved_in_stages": 1 - (training + search) / (scratch - base),
    }


def main() -> None:
    arguments = life_parser(__doc__)
    arguments.add_argument("--stages", type=int, nargs="+", default=[1, 3, 5])
    arguments.add_argument("--rate", type=float, default=RATE, help="learning rate of training from scratch")
    args = arguments.parse_args()
    quiet_libraries()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    with Display() as display:
        for life in lives(args, display):
            made = {
                "order": life.order,
                "seed": life.seed,
                "rate": args.rate,
                "arguments": lengths(args),
                **compared(life, args.stages, args.rate),
            }
            rows = [r for r in rows if any(r[k] != made[k] for k in ("order", "seed", "rate", "arguments"))] + [made]
            record(RESULTS, {"rows": rows})
            gaps = ", ".join(f"stage {r['stage']} {r['gap']:+.2%}" for r in made["stages"])
            display.note(
                f"{life.order}, seed {life.seed}: loss against retraining {gaps}; {made['saved']:.0%} of the FLOPs saved"
            )


if __name__ == "__main__":
    main()
