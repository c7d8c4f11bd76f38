"""The process that does tasks: one that it is told by name (`do_alone`), or those that it reads from standard input (`serve`).

Loading torch and a model takes longer than many tasks; so a process of this machine stays for the next one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue

from opmix.errors import OpMixError, StoreError
from opmix.execution.attempts import LOOK, end_when_withdrawn
from opmix.execution.tasks import Task, file_of, read_task, say_failed
from opmix.progress import Progress, Silent
from opmix.runs.files import full_disk
from opmix.runs.progress_file import ProgressFile
from opmix.runs.ranks import ranks_here
from opmix.runs.trace import traced

Do = Callable[[Task, Progress], None]
"""Does a task and leaves its record."""


_OFTEN, _SELDOM = 1.0, 5.0
"""Seconds between two words on progress, of a machine's few processes and of a cluster's many, which share a disk."""


def do_one(folder: Path, name: str, do: Do, *, every: float = _OFTEN) -> None:
    """Do the task of that name; an error of ours is also left for whoever waits for the record.

    Raises:
        OpMixError: It cannot be done.
    """
    task = read_task(folder, name)
    said = file_of(folder, name, "progress")
    try:
        with traced(folder) if ranks_here().first else nullcontext():
            do(task, ProgressFile(said, _Noted(name), every=every))
    except OpMixError as error:
        say_failed(folder, task, error)
        raise
    except Exception as error:
        if (full := full_disk(error, folder)) is None:
            raise
        with suppress(StoreError):  # there may be no room for that either
            say_failed(folder, task, full)
        raise full from error
    finally:
        said.unlink(missing_ok=True)


class _Noted(Silent):
    """What a task notes is in the log of its process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def note(self, text: str) -> None:
        """Say a sentence."""
        sys.stderr.write(f"{self._name}: {text}\n")


def do_alone(
    folder: Path, name: str, make: Callable[[], Do], *, attempt: str | None = None, every: float = LOOK
) -> None:
    """Do one task in a process of its own.

    Args:
        folder: The run folder.
        name: Of the task.
        make: Loads what tasks are done with; an error of ours is left for whoever waits, as one of the task is.
        attempt: The process ends as soon as this is not the wanted one any more; None: it is done whoever else does it.
        every: Seconds between two looks at that.

    Raises:
        OpMixError: It cannot be done.
    """
    if attempt is not None:
        end_when_withdrawn(folder, name, attempt, every=every)
    task = read_task(folder, name)
    try:
        do = make()
    except OpMixError as error:
        say_failed(folder, task, error)
        raise
    do_one(folder, name, do, every=_OFTEN if attempt is None else _SELDOM)


def serve(folder: Path, make: Callable[[], Do]) -> None:
    """Do the tasks named on standard input until it ends; answer each name on standard output when it is over.

    Everything else that is printed goes to standard error. Where standard input ends in the middle of a task, nobody waits for it any
    more (`LocalExecutor` was stopped, or has died), and the process ends at once: its checkpoints are whole or not there.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    do: Do | None = None
    idle = threading.Event()
    for name in _names(idle):
        try:
            do = do or make()
            do_one(folder, name, do)
        except OpMixError as error:
            sys.stderr.write(f"{name}: {error}\n")
            if do is None:  # nothing can be done here: each task says why
                say_failed(folder, read_task(folder, name), error)
        idle.set()
        answers.write(f"{name}\n")
        answers.flush()


def _names(idle: threading.Event) -> Iterator[str]:
    """Names as they come; `idle` is cleared with each."""
    names: SimpleQueue[str | None] = SimpleQueue()
    idle.set()

    def listen() -> None:
        for line in sys.stdin:
            idle.clear()
            names.put(line.strip())
        if not idle.is_set():
            os._exit(1)
        names.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (name := names.get()) is not None:
        yield name
