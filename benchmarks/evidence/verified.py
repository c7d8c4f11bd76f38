"""`opmix verify` on the default searches of `decisions.py`: how far off is the simulation, and what does the error cost?

python benchmarks/evidence/verified.py [--seeds 0 1] [--points 1] [--refine]
"""

from __future__ import annotations

from stage import RESULTS, RebalancingStage, parser

from opmix.cli.console import Display, quiet_libraries
from opmix.mixture_search.verify import verify_run
from opmix.runs.files import write_json


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--points", type=int, default=1)
    arguments.add_argument("--refine", action="store_true")
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for seed in args.seeds:
            stage = RebalancingStage(seed, args.out / f"seed{seed}", display)
            made = verify_run(
                stage.out / "search-default",
                points=args.points,
                refine=args.refine,
                model=stage.base,
                tokenizer=stage.tokenizer,
                progress=display,
            )
            write_json(RESULTS / f"verification-seed{seed}.json", made.json())
            for sentence in made.sentences:
                display.note(f"seed {seed}: {sentence}")
            if made.refinement is not None:
                display.note(f"seed {seed}: {made.refinement['reason']}")


if __name__ == "__main__":
    main()
