"""`opmix search`: the mixture for the next stretch, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson, Changes, Out, print_json
from opmix.compute.budget import speaks

if TYPE_CHECKING:
    from rich.console import Console

    from opmix.api import SearchResult


def search(
    config: Annotated[Path, typer.Argument(help="search.yaml: model, domains, budget, ...")],
    set_: Changes = None,
    out: Out = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Then verify the proposal, and refine while its error matters.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the mixture for the next stretch: checkpoint + domains -> shares with intervals."""
    from opmix.config import load_config

    settings = load_config(config, set_ or [])

    from opmix.cli.console import Display, importing

    with importing():
        from opmix.api import run_search
    folder = out or Path("runs") / config.stem
    with Display(silent=as_json or not speaks()) as display:
        result = run_search(settings, base=config.parent.resolve(), out=folder, progress=display)
        made = None
        if refine:
            from opmix.mixture_search.verify import verify_run

            made = verify_run(folder, refine=True, progress=display)
    if not speaks():
        return
    if as_json:
        extra = {} if made is None else {"verification": made.json()}
        print_json({**result.json(), "timing": result.timing().json(), **extra})
        return
    show_search(result, folder)
    if made is not None:
        from opmix.cli.verify import show_verification

        show_verification(made, folder)


def show_search(result: SearchResult, folder: Path) -> None:
    """Mixture, decision, check and cost of `opmix search`."""
    from opmix.cli.console import show_report, show_verdict
    from opmix.progress.display import tell, terminal
    from opmix.results.loss_limits import limit_sentences, read_limits
    from opmix.results.opinion import Opinion

    console = terminal()
    show_verdict(console, result.verdict, "current")
    _show_payoff(console, result)
    for line in limit_sentences(read_limits(result.proposal.evidence)):
        tell(console, line)
    if (second := Opinion.read(result.proposal.evidence)) is not None:
        tell(console, second.sentence())
    tell(console, str(result.proposal.check["verdict"]))
    share = result.search_share
    tell(console, f"The search cost {share:.1%} of the stage's training FLOPs.")
    for note in result.notes:
        tell(console, f"note: {note}")
    show_report(console, folder)


def _show_payoff(console: Console, result: SearchResult) -> None:
    """What every target and domain gains or pays, where there are targets."""
    from opmix.progress.display import table
    from opmix.results.payoff import Payoff

    told = Payoff.read(result.proposal.evidence)
    if told is None:
        return
    moved = result.verdict.decision.action == "move"
    level = f"{result.verdict.decision_settings.interval_level:.0%} interval"
    title = f"Gain over {told.reference} in nats, {'as recommended' if moved else 'if moved'}"
    shown = table("eval set", "", "weight", "gain", level, "of its loss now", title=title)
    for name in (*told.targets, *(n for n in told.changes if n not in told.targets)):
        change = told.changes[name]
        what = "no say" if name in told.silent else "target" if name in told.targets else "domain"
        low, high = change.interval
        shown.add_row(
            name,
            what,
            f"{told.weights[name]:.0%}",
            f"{0.0 - change.nats:+.4f}",
            f"{0.0 - high:+.4f} to {0.0 - low:+.4f}",
            f"{0.0 - change.percent:+.1f} %",
        )
    console.print(shown)
