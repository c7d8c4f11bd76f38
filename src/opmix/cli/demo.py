"""`opmix demo`: the whole path in minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson, print_json

if TYPE_CHECKING:
    from opmix.demo import DemoResult


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of everything that is drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole path in minutes on a CPU: real text, a small model, the proposal against uniform, and a report."""
    from opmix.cli.console import Display, importing

    # So small a model gains little by two threads, and loses half its speed by them where others work beside it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with Display(silent=as_json) as display:
        display.note("loading torch and transformers")
        with importing():
            from opmix.demo import run_demo

        result = run_demo(out, seed=seed, progress=display)
    if as_json:
        print_json({**result.search.json(), "comparison": result.comparison})
    else:
        show_demo(result, out)


def show_demo(result: DemoResult, folder: Path) -> None:
    """The search, and what training on its answer gave."""
    from opmix.cli.console import show_report, show_verdict
    from opmix.progress.display import table, tell, terminal

    console = terminal()
    show_verdict(console, result.search.verdict, "current")
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
    show_report(console, folder)
