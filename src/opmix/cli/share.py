"""`opmix card` and `opmix push`: what others should know of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished search, fit or life.")],
    into: Annotated[
        Path | None, typer.Option("--into", help="Model folder or README.md that gets the section; else it is printed.")
    ] = None,
) -> None:
    """A section for a model card: mixture, shares, interval, cost, commit and fingerprints."""
    from opmix.report.card import run_card

    made = run_card(run)
    if into is None:
        sys.stdout.write(made.section())
    else:
        typer.echo(str(made.write(into)))


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished search, fit or life.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME of a dataset repository on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Push a run's decision, tables, report and card to the Hugging Face hub; no weights."""
    from opmix.report.hub import push_run

    typer.echo(push_run(run, repo, private=not public))
