"""`opmix report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Run folder with mixture.json.")]) -> None:
    """Write the run's report.html again."""
    from opmix.report import write_report

    typer.echo(str(write_report(run)))
