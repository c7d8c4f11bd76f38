"""`opmix verify`: is the simulation behind a search true?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson

if TYPE_CHECKING:
    from opmix.mixture_search.verify import Verification


def verify(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished `opmix search`.")],
    points: Annotated[int, typer.Option("--points", min=0, help="Further mixtures to train adapters on.")] = 0,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also train the whole model for a probe's length on proposal and mixture in use."),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="While the error matters, add the trained adapter as a probe and solve again."),
    ] = False,
    max_rounds: Annotated[int, typer.Option("--max-rounds", min=1, help="Of refining.")] = 3,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder that relative paths start from; default: as recorded.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on the proposed mixture itself and hold the simulation against it."""
    from opmix.cli.console import Display, importing

    with importing():
        from opmix.mixture_search.verify import verify_run
    with Display(silent=as_json) as display:
        made = verify_run(
            run, points=points, full=full, refine=refine, max_rounds=max_rounds, base=base, progress=display
        )
    if as_json:
        sys.stdout.write(json.dumps(made.json(), indent=2, ensure_ascii=False) + "\n")
    else:
        show_verification(made, run)


def show_verification(made: Verification, run: Path) -> None:
    """Tables and sentences on standard output."""
    from opmix.progress.display import table, tell, terminal

    console = terminal()
    heads = ("eval set", "trained on it", "interpolated", "by the law", "trained - interpolated", "KL")
    shown = table(*heads, title="The proposal, nats per token")
    first = made.points[0]
    for e, metric in enumerate(made.metrics):
        difference = f"{first.direct[e] - first.proxy[e]:+.4f} +- {first.error[e]:.4f}"
        shown.add_row(
            metric,
            f"{first.direct[e]:.4f}",
            f"{first.proxy[e]:.4f}",
            f"{first.law[e]:.4f}",
            difference,
            f"{first.kl[e]:.4f}",
        )
    console.print(shown)
    for sentence in made.sentences:
        tell(console, sentence)
    if made.full is not None:
        full = made.full
        console.print(
            f"Full training on {full['tokens']:,} tokens: gain over {full['against']} {full['gain']:+.4f} +- "
            f"{full['standard_error']:.4f} "
            f"nats (law {full['law_gain']:+.4f}).",
        )
    if made.refinement is not None:
        console.print(f"Refining: {made.refinement['reason']}.", style="bold")
        for domain, share in made.refinement["mixture"].items():
            console.print(f"  {domain}: {share:.3f}")
    console.print(f"report: {run / 'report.html'}", soft_wrap=True)
