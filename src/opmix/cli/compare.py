"""`opmix compare` and `opmix methods`: other ways to choose a mixture, and how they do beside OP-Mix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson, Changes

if TYPE_CHECKING:
    from opmix.results.comparison import CompareFile
    from opmix.results.life import Spread


def compare(
    config: Annotated[Path, typer.Argument(help="compare.yaml: a lifecycle, and the methods that live it.")],
    set_: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; running again resumes.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Run this entrant only; may be repeated.")
    ] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Do finished steps again whose inputs have changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run several methods on the same model, data, tokens and seeds; what they have in common is done once. Resumes by itself."""
    from opmix.comparison.config import load_compare

    settings, folder = load_compare(config, set_ or []), out or Path("runs") / config.stem

    from opmix.cli.console import Display, importing

    with Display(silent=as_json) as display:
        display.note("loading torch and transformers")
        with importing():
            from opmix.comparison.run import run_compare

        result = run_compare(
            settings, out=folder, base=config.parent.resolve(), redo=redo, only=only or (), progress=display
        )
    if as_json:
        sys.stdout.write(json.dumps(result.content, indent=2, ensure_ascii=False) + "\n")
    else:
        show(result.comparison, folder)


def methods(
    as_json: AsJson = False,
) -> None:
    """List every method that `opmix compare` knows, with a line each."""
    from opmix.methods.registry import ENTRIES
    from opmix.progress.display import table, terminal

    if as_json:
        rows = [{k: getattr(e, k) for k in ("name", "title", "family", "line", "paper")} for e in ENTRIES]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    shown = table("method", "decides", "what it does", "paper")
    said = {
        "fixed": "a rule",
        "searched": "before the run",
        "online": "during the run",
        "continual": "trains otherwise",
    }
    for family, when in said.items():
        for entry in ENTRIES:
            if entry.family == family:
                shown.add_row(entry.name, when, entry.line, entry.paper)
    terminal().print(shown)


def show(comparison: CompareFile, folder: Path) -> None:
    """One row an entrant, best first, in 80 columns: the page has the other deviations; then what to use."""
    from rich.table import Column

    from opmix.progress.display import table, tell, terminal
    from opmix.results.comparison_verdict import comparison_verdict

    reference = comparison.reference
    shown = table(
        Column("entrant", overflow="fold"),
        "test loss",
        Column(f"against {reference}", no_wrap=True),
        Column("forgotten", no_wrap=True, min_width=9),
        "search",
        Column("FLOPs", no_wrap=True, min_width=6),
        title=f"Mean test loss over {_seeds(comparison)}, nats per token",
    )
    for row in comparison.table:
        searched, trained = row.search_flops.known, row.training_flops.known
        share = f"{searched / trained:.0%}" if trained else "no training"
        shown.add_row(
            row.entrant,
            "" if row.mean_loss.mean is None else f"{row.mean_loss.mean:.4f}",
            _spread(row.difference),
            "" if row.forgetting.mean is None else f"{row.forgetting.mean:+.3f}",
            share if searched or not trained else "",
            f"{row.total_flops.known:.1e}".replace("e+", "e"),
        )
    console = terminal()
    console.print(shown)
    tell(console, comparison_verdict(comparison), style="bold")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _seeds(comparison: CompareFile) -> str:
    number = max(row.seeds for row in comparison.table)
    return "one seed" if number == 1 else f"{number} seeds (mean +- standard deviation)"


def _spread(value: Spread | None) -> str:
    if value is None or value.mean is None:
        return ""
    deviation = "" if value.sd is None else f" +- {value.sd:.4f}"
    return f"{value.mean:+.4f}{deviation}"
