"""`opmix task`: the process that does tasks of a run; executors start it, people need not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from opmix.execution.context import Worker
    from opmix.execution.worker import Do


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
    if name is None and sys.stdin.isatty():
        sys.stderr.write(f"waiting for names of tasks on standard input, a line each; they lie in {folder / 'tasks'}\n")
    with importing():
        from opmix.execution.context import Context
        from opmix.execution.worker import do_alone, serve

        workers = _workers()

    def make() -> Do:
        return workers[Context.read(folder).worker](folder)

    if name is None:
        serve(folder, make)
    else:
        do_alone(folder, name, make, attempt=attempt)


def _workers() -> dict[Worker, Callable[[Path], Do]]:
    """Whoever does the tasks of a run folder, by what its context says."""
    from opmix.comparison.worker import comparison_worker
    from opmix.lifecycle.worker import life_worker
    from opmix.mixture_search.worker import search_worker

    return {"search": search_worker, "life": life_worker, "comparison": comparison_worker}
