"""What a person sees in a terminal: results as small tables (`Display` shows progress)."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opmix.progress.display import Display, table, tell, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from opmix.api import SearchResult
    from opmix.demo import DemoResult
    from opmix.fit import FitResult
    from opmix.mixing.decision import Verdict


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and transformers, silenced, and leave the half million objects of the two out of garbage collection for good.

    Every Trainer has garbage collected when it begins, which takes half a second and more where all of them are looked at.
    """
    gc.disable()
    try:
        quiet_libraries()
        yield
    finally:
        gc.freeze()
        gc.enable()


def quiet_libraries() -> None:
    """Keep other libraries' chatter off the screen; their errors still raise."""
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|accelerate)\..*")
    for name in ("transformers", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def show_fit(result: FitResult, folder: Path | None) -> None:
    """Laws, mixture and decision of `opmix fit`."""
    console = terminal()
    for note in result.notes:
        tell(console, f"note: {note}")
    laws = table(
        "eval set",
        "LOO error",
        "Spearman",
        title=f"{len(result.fit.law.metrics)} laws from {len(result.table.points)} runs",
    )
    for metric, quality in zip(result.fit.law.metrics, result.fit.quality, strict=True):
        laws.add_row(metric, f"{quality.loo_rmse:.4f}", f"{quality.loo_spearman:.3f}")
    console.print(laws)
    _show_verdict(console, result.verdict, "prior")
    _show_report(console, folder)


def show_search(result: SearchResult, folder: Path) -> None:
    """Mixture, decision, check and cost of `opmix search`."""
    from opmix.results.loss_limits import limit_sentences, read_limits
    from opmix.results.opinion import Opinion

    console = terminal()
    _show_verdict(console, result.verdict, "current")
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
    _show_report(console, folder)


def _show_payoff(console: Console, result: SearchResult) -> None:
    """What every target and domain gains or pays, where there are targets."""
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


def show_demo(result: DemoResult, folder: Path) -> None:
    """The search, and what training on its answer gave."""
    console = terminal()
    _show_verdict(console, result.search.verdict, "current")
    arms = {n: {"predicted": a.predicted, "measured": a.measured} for n, a in result.comparison.arms.items()}
    shown = table(
        "eval set",
        *(f"{arm} {kind}" for arm in arms for kind in ("predicted", "measured")),
        title="Held-out loss, nats per token",
    )
    for metric in result.search.law.metrics:
        cells = [f"{arms[a][k][metric]:.4f}" for a in arms for k in ("predicted", "measured")]
        shown.add_row(metric, *cells)
    console.print(shown)
    tell(console, result.comparison.sentence)
    _show_report(console, folder)


def _show_verdict(console: Console, verdict: Verdict, reference: str) -> None:
    level = f"{verdict.decision_settings.interval_level:.0%} interval"
    kept = next(a.mixture for a in verdict.alternatives if a.name == reference)
    shown = table("domain", "mixture", "optimum", level, reference, title="Token shares")
    for domain, share in verdict.mixture.items():
        low, high = verdict.interval[domain]
        shown.add_row(
            domain,
            f"{share:.3f}",
            f"{verdict.optimum.mixture[domain]:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{kept[domain]:.3f}",
        )
    console.print(shown)
    tell(console, verdict.decision.reason, style="bold")


def _show_report(console: Console, folder: Path | None) -> None:
    if folder is not None:
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


__all__ = ["Display", "importing", "quiet_libraries", "show_demo", "show_fit", "show_search"]
