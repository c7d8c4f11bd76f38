"""What a person sees in a terminal: results as small tables (`Display` shows progress)."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from opmix.progress.display import Display, table, tell

if TYPE_CHECKING:
    from rich.console import Console

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


def show_verdict(console: Console, verdict: Verdict, reference: str) -> None:
    """Shares with their intervals, and the decision."""
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


def show_report(console: Console, folder: Path | None) -> None:
    """Where it is, if there is a folder."""
    if folder is not None:
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


__all__ = ["Display", "importing", "quiet_libraries", "show_report", "show_verdict"]
