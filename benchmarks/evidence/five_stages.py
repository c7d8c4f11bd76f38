"""Regret in every stage of a five-stage life, in two orders: the paper's figure 8 at small size.

    python benchmarks/evidence/five_stages.py [--orders forward backward] [--seeds 0 1] [--stages 1 2 3 4 5]

Before each stage a search from the model that OP-Mix's life has come to; then full trainings from that same model on points of the
nine-point grid (0.2, 0.4, 0.6 and 0.9 of the new domain, and neighbours of the best until it has both) and on the proposal, which the
life goes on from. Mean test loss over all domains known by then decides. Every stage is a cell of results/regret.json.
"""

from __future__ import annotations

from life import Life, lengths, life_parser, lives
from regret import add

from opmix.cli.console import Display, quiet_libraries

COARSE = [0.2, 0.4, 0.6, 0.9]


def cell(life: Life, number: int, steps: dict[str, int]) -> dict[str, object]:
    """Stage `number` of a life."""
    share = float(life.lived(number)["share"])
    stage = life.stage(number)
    grid = stage.swept(COARSE)
    result = stage.search()  # found in its folder
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in steps.items())
    return {
        "stage": f"{life.order} {number}",
        "order": ">".join(["+".join(life.known(0)), *life.new]),
        "domains": len(life.known(number)),
        **stage.judged(result, grid, share),
        "arguments": steps,
        "command": f"python benchmarks/evidence/five_stages.py --orders {life.order} --seeds {life.seed} {options}",
    }


def main() -> None:
    arguments = life_parser(__doc__)
    arguments.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = arguments.parse_args()
    quiet_libraries()
    with Display() as display:
        for life in lives(args, display):
            for number in args.stages:
                made = cell(life, number, lengths(args))
                add(made)
                display.note(
                    "{stage}, seed {seed}: proposal {proposal}, best {best_of_grid}, regret {regret:.2%}, 10 % replay "
                    "{replay_regret:.2%}".format(**made)
                )


if __name__ == "__main__":
    main()
