"""How many proxies does a law need, with and without slopes? Decisions per FLOP on the demo's stage.

    python benchmarks/evidence/gradient_points.py [--seeds 0 1]

The reference is the law from everything that `rebalancing.py` evaluated at share 0.9: the joint probe, twenty proxies, and slopes at six
of these. Subsets are drawn at random (the joint probe always in); their laws' optima are compared with the reference's: largest
difference of a share, and regret by the reference law. As the reference leans on the same slopes, the laws are also asked for the mean
loss of the proxies they have not seen. All this measures what *fitting* leaves open, not whether the simulation is true.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
from rebalancing import simulate
from responses import Table, fitted_law, optimum_of
from stage import RESULTS, RebalancingStage, parser

from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.law import LogLinearLaw
from opmix.mixing.mixture import FloatArray
from opmix.models import model_shape
from opmix.runs.files import write_json

DRAWS = 40


def judge(
    table: Table, law: LogLinearLaw, target: FloatArray, values: list[int], slopes: list[int]
) -> tuple[float, float, float]:
    """Distance of the subset's optimum from the full law's, its regret by that law, and the error at proxies not seen."""
    fit = fitted_law(table, values, slopes)
    found = optimum_of(fit, table).weights
    rest = [
        i for i, kind in enumerate(table.design.kinds) if kind == "proxy" and table.design.fitted[i] and i not in values
    ]
    left = (
        (fit.law.predict(table.design.mixtures[rest]) - table.made.losses[rest]).mean(axis=1) if rest else np.zeros(1)
    )
    off = float(
        np.nan_to_num(np.sqrt(np.mean((left - left.mean()) ** 2)), nan=np.inf)
    )  # a common shift moves no optimum
    return float(np.abs(found - target).max()), float((law.predict(found) - law.predict(target)).mean()), off


def main() -> None:
    args = parser(__doc__).parse_args()
    quiet_libraries()
    rows = []
    for seed in args.seeds:
        with Display() as display:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            table = Table(*simulate(stage, 0.9, 60, display))
        shape, length = model_shape(stage.base), stage.config.sequence_length
        adapted = sum(16 * sum(m.weight.shape) for n, m in stage.base.named_modules() if n.endswith("_proj"))
        slope_cost = shape.slopes(length, adapted * len(table.design.probes.probes)) / shape.forward(length)
        inner = [i for i, kind in enumerate(table.design.kinds) if kind == "proxy" and table.design.fitted[i]]
        steep = [i for i in inner if i in table.made.slope_points]
        everything = fitted_law(table, [0, *inner], [0, *steep])
        judged = partial(judge, table, everything.law, optimum_of(everything, table).weights)
        rng = np.random.default_rng(seed)
        for count in (8, 10, 12, 16):
            sets = [[0, *rng.choice(inner, count - 1, replace=False).tolist()] for _ in range(DRAWS)]
            found = _summary([judged(s, []) for s in sets])
            rows.append({"seed": seed, "points": count, "slopes": False, "passes": float(count), **found})
        for count in (2, 3, 4):
            sets = [[0, *chosen] for chosen in combinations(steep, count - 1)]
            found = _summary([judged(s, s) for s in sets])
            rows.append({"seed": seed, "points": count, "slopes": True, "passes": slope_cost * count, **found})
        write_json(RESULTS / "gradient_points.json", {"rows": rows})
    for row in rows:
        print(
            f"seed {row['seed']}: {row['points']:2d} points {'with slopes' if row['slopes'] else 'plain      '} = "
            f"{row['passes']:4.1f} passes: optimum off by {row['distance']:.3f} (90 % {row['distance_90']:.3f}), regret by the full law "
            f"{row['regret']:.4f} (90 % {row['regret_90']:.4f}), unseen proxies {row['unseen']:.4f}"
        )


def _summary(found: list[tuple[float, float, float]]) -> dict[str, float]:
    distance, regret, unseen = np.array(found).T
    return {
        "distance": float(np.median(distance)), "distance_90": float(np.quantile(distance, 0.9)), "regret": float(np.median(regret)),
        "regret_90": float(np.quantile(regret, 0.9)), "unseen": float(np.median(unseen)), "sets": len(found),
    }  # fmt: skip


if __name__ == "__main__":
    main()
