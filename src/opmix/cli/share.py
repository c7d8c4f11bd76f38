"""`opmix card` and `opmix push`: what others should know of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from opmix.errors import ConfigError


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a finished search, fit or life.")],
    into: Annotated[
        Path | None, typer.Option("--into", help="Model folder or README.md that gets the section; else it is printed.")
    ] = None,
) -> None:
    """A section for a model card: mixture, shares, interval, cost, commit and fingerprints."""
    from opmix.domain import user_path
    from opmix.progress.display import visible
    from opmix.report.card import run_card

    made = run_card(user_path(run))
    if into is None:
        sys.stdout.write(visible(made.section()))
    else:
        typer.echo(str(made.write(user_path(into))))


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished search, fit or life.")],
    to: Annotated[
        str | None, typer.Option("--to", help="ORG/NAME of a dataset repository on the Hugging Face hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Push a run's decision, tables, report and card to the Hugging Face hub; no weights."""
    from opmix.domain import user_path
    from opmix.report.hub import push_run

    folder = user_path(run)
    if to is None:
        raise ConfigError("--to: missing; expected ORG/NAME of a dataset repository on the hub")
    typer.echo(push_run(folder, to, private=not public))
