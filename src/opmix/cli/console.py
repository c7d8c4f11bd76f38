"""What a person sees in a terminal: progress with time left, and results as small tables."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from opmix.progress import Advance

if TYPE_CHECKING:
    from opmix.api import SearchResult
    from opmix.demo import DemoResult
    from opmix.fit import FitResult
    from opmix.mixing.decision import Verdict

_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal
_WORTH_A_LINE = 1.0  # seconds a task must take to be told of there


class Display:
    """Progress bars on a terminal, plain lines in a log file; both on standard error."""

    def __init__(self, *, silent: bool = False) -> None:
        self._console = Console(stderr=True, quiet=silent)
        self._live = self._console.is_terminal and not silent
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def note(self, text: str) -> None:
        """A sentence of its own."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A bar, or a line every ten seconds and one at the end."""
        started = last = time.monotonic()
        bar = self._bars.add_task(name, total=total or None) if self._live else None

        def advance(done: int, of: int) -> None:
            nonlocal last
            if bar is not None:
                self._bars.update(bar, completed=done, total=of or None)
                return
            now = time.monotonic()
            if now - last >= _PLAIN_EVERY and (done < of or not of):
                last = now
                left = (now - started) / max(done, 1) * (of - done)
                self.note(f"{name}: {done}/{of}, about {left:.0f} s left" if of else f"{name}: {done:,} documents")

        yield advance
        if bar is None and time.monotonic() - started >= _WORTH_A_LINE:
            self.note(f"{name}: done in {time.monotonic() - started:.1f} s")


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
    console = Console()
    for note in result.notes:
        console.print(f"note: {note}", highlight=False)
    laws = Table(
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
    console = Console()
    _show_verdict(console, result.verdict, "current")
    console.print(str(result.proposal.check["verdict"]), highlight=False)
    share = result.json()["cost"]["search_share"]
    console.print(f"The search cost {share:.1%} of the stage's training FLOPs.", highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False)
    _show_report(console, folder)


def show_demo(result: DemoResult, folder: Path) -> None:
    """The search, and what training on its answer gave."""
    console = Console()
    _show_verdict(console, result.search.verdict, "current")
    arms: Mapping[str, Any] = result.comparison["arms"]
    table = Table(
        "eval set",
        *(f"{arm} {kind}" for arm in arms for kind in ("predicted", "measured")),
        title="Held-out loss, nats per token",
    )
    for metric in result.search.law.metrics:
        cells = [f"{arms[a][k][metric]:.4f}" for a in arms for k in ("predicted", "measured")]
        table.add_row(metric, *cells)
    console.print(table)
    console.print(str(result.comparison["sentence"]), highlight=False)
    _show_report(console, folder)


def _show_verdict(console: Console, verdict: Verdict, reference: str) -> None:
    level = f"{verdict.decision_settings.interval_level:.0%} interval"
    kept = next(a.mixture for a in verdict.alternatives if a.name == reference)
    table = Table("domain", "mixture", "optimum", level, reference, title="Token shares")
    for domain, share in verdict.mixture.items():
        low, high = verdict.interval[domain]
        table.add_row(
            domain,
            f"{share:.3f}",
            f"{verdict.optimum.mixture[domain]:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{kept[domain]:.3f}",
        )
    console.print(table)
    console.print(verdict.decision.reason, style="bold", highlight=False)


def _show_report(console: Console, folder: Path | None) -> None:
    if folder is not None:
        console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
