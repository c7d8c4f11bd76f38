"""`opmix task`: the process that does tasks of a run; executors start it, people need not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def task(
    folder: Annotated[Path, typer.Argument(help="Run folder that tasks were handed out in.")],
    name: Annotated[str | None, typer.Argument(help="Of the task; none: names are read from standard input.")] = None,
    attempt: Annotated[
        str | None, typer.Option(help="End as soon as the task's job file names another attempt; none: go on.")
    ] = None,
) -> None:
    """Do tasks of a run folder; their results are records there."""
    from opmix.cli.console import importing
    from opmix.execution.tasks import check_handed_out

    check_handed_out(folder)
    with importing():
        from opmix.execution.worker import do_alone, serve
        from opmix.mixture_search.worker import search_worker
    if name is None:
        serve(folder, lambda: search_worker(folder))
    else:
        do_alone(folder, name, lambda: search_worker(folder), attempt=attempt)
