"""A task as a file of the run folder, and the seam to whatever starts it.

    tasks/context.json            what all of a run's processes are told (`context`)
    tasks/<name>.json             what is to be done
    tasks/<name>.progress.json    how far it is, as its process says
    tasks/<name>.failed.json      an error that would come again
    tasks/<name>.job.json         who does it, where a scheduler started it (`attempts`)
    steps/<name>.json             its record: the only way a result comes back

No function is pickled and no object travels: a process is told a folder and a name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from opmix.errors import OpMixError, StoreError, error_named
from opmix.runs.files import json_of, regular, write_json


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to be done by whoever reads it."""

    name: str
    """Of the record that it leaves."""
    key: str
    """Fingerprint of its inputs; the record carries it."""
    kind: str
    """What is to be done, such as `probe`, `sweep` or `life`."""
    payload: Mapping[str, Any]
    """JSON; everything else is in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A task whose process has ended, or says that it is done; whether it is, the record says."""

    task: Task
    error: str | None = None
    """None: it says that it has finished."""
    place: str = ""
    """Slot, node or job, for people."""


class Executor(Protocol):
    """Starts tasks and tells how they ended."""

    @property
    def slots(self) -> int:
        """Tasks at once."""

    def run(self, folder: Path, waiting: deque[Task]) -> Generator[Ended | None]:
        """Start tasks as there is room and yield each as it ends; closing the iterator stops what still runs.

        Args:
            folder: The run folder.
            waiting: Taken from the left; whoever iterates may append.

        Yields:
            What ended; None about twice a second, for whoever wants to look around.
        """


def file_of(folder: Path, name: str, kind: str = "") -> Path:
    """Where a task lies, or with `kind` (`progress`, `failed`, `job`) what is said of it."""
    return folder / "tasks" / f"{name}.{kind}.json" if kind else folder / "tasks" / f"{name}.json"


def check_handed_out(folder: Path) -> None:
    """A process that waits for names would wait there for ever, or end without a word.

    Raises:
        StoreError: No tasks were handed out there.
    """
    if not (folder / "tasks").is_dir():
        raise StoreError(
            f"{folder}: no tasks were handed out there; expected the folder of a run with `executor`: start that run, "
            "it starts its tasks itself"
        )


def running_in(folder: Path) -> set[str]:
    """Names of the tasks whose processes say how far they are."""
    end = ".progress.json"
    with suppress(OSError), os.scandir(folder / "tasks") as files:
        return {file.name.removesuffix(end) for file in files if file.name.endswith(end)}
    return set()


def hand_out(folder: Path, task: Task) -> None:
    """Write a task to be read by the process that does it; what was said of an earlier attempt is forgotten.

    Raises:
        StoreError: It cannot be written.
    """
    for kind in ("progress", "failed"):
        file_of(folder, task.name, kind).unlink(missing_ok=True)
    write_json(file_of(folder, task.name), asdict(task), lasting=False)


def read_task(folder: Path, name: str) -> Task:
    """The task of that name.

    Raises:
        StoreError: There is none, or its file is damaged.
    """
    file = file_of(folder, name)
    try:
        content = json_of(file)
        return Task(**{field: content[field] for field in ("name", "key", "kind", "payload")})
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{file}: no task that can be read ({error}); expected what a run with `executor` wrote there: start that "
            "run, it starts its tasks itself"
        ) from error


def say_failed(folder: Path, task: Task, error: OpMixError) -> None:
    """Leave an error that would come again however often the task is begun."""
    write_json(file_of(folder, task.name, "failed"), {"error": type(error).__name__, "message": str(error)})


def failure_of(folder: Path, task: Task) -> OpMixError | None:
    """What `say_failed` left, to be raised; None: nothing."""
    try:
        said = json_of(file_of(folder, task.name, "failed"))
        kind, message = str(said["error"]), str(said["message"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return error_named(kind, message)


def last_words(log: Path, since: int = 0) -> str:
    """The last lines of what a process printed, in brackets, for an error.

    Args:
        log: File.
        since: Bytes that were there before.
    """
    try:
        with regular(log).open("rb") as stream:
            stream.seek(max(since, log.stat().st_size - _TAIL))
            lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f" ({log}: {' | '.join(lines[-_SHOWN:])})" if lines else f" (nothing in {log})"


_TAIL = 1 << 16
_SHOWN = 4  # lines of a log that an error repeats
