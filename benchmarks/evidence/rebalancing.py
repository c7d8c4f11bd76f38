"""Which probes and which response foretell a rebalancing stage? Several designs on the demo's stage, judged by full trainings.

    python benchmarks/evidence/rebalancing.py [--seeds 0 1] [--shares 0.9 0.5 0.25] [--train]

Every design trains the joint probe (uniform, which is the old mixture) and one probe per domain d on `share` d + rest uniform, 60 steps
each, and evaluates the same kinds of points, some with slopes. From these tables every response is computed offline and asked two
things: the gain over uniform of the grid mixtures (fully trained by `rebalancing_grid.py`), and its own optimum (trained with --train).
Searches see the valid split only; gains are measured on the test split.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from responses import RESPONSES, Table
from stage import RESULTS, RebalancingStage, mean, parser

from opmix.cli.console import Display, quiet_libraries
from opmix.config import ProxiesConfig
from opmix.lifecycle.context import SearchContext
from opmix.methods.base import Simulation
from opmix.mixing.design import StageDesign, design_stage
from opmix.runs.files import write_json
from opmix.runs.store import RunStore


def simulate(stage: RebalancingStage, share: float, steps: int, display: Display) -> tuple[StageDesign, Simulation]:
    """Probes and points of one design; kept in the run folder."""
    probes = stage.config.probes.model_copy(update={"steps": steps})
    config = stage.config.model_copy(
        update={
            "proxies": ProxiesConfig(eval_sequences=64),
            "probes": probes,
            "cache_dir": str(stage.out.parent / "cache"),
        }
    )
    # The published table needs its twenty proxies; the others are asked through probes and slopes.
    design = design_stage(stage.names, None, share=share, num_points=None if share == 0.9 else 8, seed=stage.seed)
    with RunStore(stage.out / f"share-{share:g}-{steps}") as store:
        context = SearchContext(config, stage.out, store, display, None)
        context.prepare(stage.base, stage.tokenizer)
        steep = [
            *range(len(stage.names) + 1),
            *range(len(stage.names) + 2, len(stage.names) + 7),
        ]  # probes and five more
        made = context.simulate(design.probes, design.points, label="proxies", slopes=steep)
    return design, made


def judge(stage: RebalancingStage, table: Table, name: str, train: bool) -> dict[str, Any]:
    """One response: predicted against measured gains on the grid, and its own optimum."""
    predict, optimum = RESPONSES[name](table)
    grid = {n: m for n, m in stage.grid().items() if n != "uniform" and stage.known(m)}
    at_uniform = mean(stage.true_losses(stage.uniform))
    measured = np.array([at_uniform - mean(stage.true_losses(m)) for m in grid.values()])
    predicted = np.array([predict(m.weights) for m in grid.values()])
    chosen = int(predicted.argmax()) if predicted.max() > 0 else -1
    best = max(0.0, float(measured.max()))
    slope = float(predicted @ measured / max(predicted @ predicted, 1e-12))
    row = {
        "response": name,
        "correlation": float(np.corrcoef(predicted, measured)[0, 1]),
        "same_sign": int(np.sum(np.sign(predicted) == np.sign(measured))),
        "slope_of_measured_by_predicted": slope,
        "rms_error": float(np.sqrt(np.mean((predicted - measured) ** 2))),
        "grid_choice": "uniform" if chosen < 0 else list(grid)[chosen],
        "grid_regret": best - (0.0 if chosen < 0 else float(measured[chosen])),
        "predicted": dict(zip(grid, predicted.tolist(), strict=True)),
        "measured": dict(zip(grid, measured.tolist(), strict=True)),
        "optimum": dict(optimum),
        "optimum_predicted": float(predict(optimum.weights)),
    }
    if train:
        row["optimum_measured"] = at_uniform - mean(stage.true_losses(optimum))
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.5, 0.25])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--train", nargs="*", default=None, help="responses whose optimum is trained on; empty: all")
    args = arguments.parse_args()
    quiet_libraries()
    file = RESULTS / f"rebalancing-{args.steps}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    with Display() as display:
        for seed in args.seeds:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            for share in args.shares:
                design, made = simulate(stage, share, args.steps, display)
                for name in RESPONSES:
                    train = args.train is not None and (not args.train or f"{name}@{share:g}" in args.train)
                    row = judge(stage, Table(design, made), name, train)
                    rows = [r for r in rows if (r["seed"], r["share"], r["response"]) != (seed, share, name)]
                    rows.append({"seed": seed, "share": share, "steps": args.steps, **row})
                    write_json(file, {"rows": rows})
    for row in rows:
        own = f", trained {row['optimum_measured']:+.4f}" if "optimum_measured" in row else ""
        print(
            f"seed {row['seed']} share {row['share']:4g} {row['response']:>22}: r {row['correlation']:+.2f}, "
            f"signs {row['same_sign']:2d}/{len(row['measured'])}, rms {row['rms_error']:.4f}, "
            f"slope {row['slope_of_measured_by_predicted']:+.2f}, "
            f"picks {row['grid_choice']:>14} (regret {row['grid_regret']:.4f}); "
            f"optimum predicted {row['optimum_predicted']:+.4f}{own}: "
            + " ".join(f"{s:.2f}" for s in row["optimum"].values())
        )


if __name__ == "__main__":
    main()
