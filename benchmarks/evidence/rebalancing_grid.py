"""What full training says: the demo's stage on uniform and on twelve neighbours of it.

    python benchmarks/evidence/rebalancing_grid.py [--seeds 0 1]

Resumable: trainings are kept in `results/rebalancing-trainings-seed*.json`.
"""

from __future__ import annotations

from stage import RebalancingStage, mean, parser

from opmix.cli.console import Display, quiet_libraries


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=["+", "-"], help="only the mixtures that raise, or lower, one domain")
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for seed in args.seeds:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            grid = {n: m for n, m in stage.grid().items() if args.only in (None, n[-1]) or n == "uniform"}
            losses = {name: mean(stage.true_losses(mixture)) for name, mixture in grid.items()}
            display.note(f"seed {seed}: uniform {losses['uniform']:.4f}")
            for name, loss in losses.items():
                display.note(f"  {name:>14}: {losses['uniform'] - loss:+.4f}")


if __name__ == "__main__":
    main()
