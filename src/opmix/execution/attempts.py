"""Which process does a task: the one whose attempt its job file names. Any other ends by itself.

    tasks/<name>.job.json    {"attempt", "key", "engine", "job"}: who was told to do the task, where

Schedulers lose sight of processes: a node that cannot be reached may go on computing, a cancelled job may start. Whoever hands a task
to another process writes another attempt; the former one sees that within seconds, wherever it is, and two never write for long.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from opmix.execution.tasks import Task, file_of, running_in
from opmix.runs.files import json_of, write_json

LOOK = 5.0
"""Seconds between two looks of a process at whether it is still wanted."""
WITHDRAWN = 75
"""Exit code of a process that is not (EX_TEMPFAIL)."""


@dataclass(frozen=True, kw_only=True)
class JobNote:
    """Who was told to do a task."""

    attempt: str
    key: str
    """The task's."""
    engine: str
    """Kind of the executor."""
    job: str | None = None
    """As the engine calls it; None: it was being started."""


def noted(folder: Path, task: Task, engine: str) -> JobNote:
    """Begin an attempt: from now on no other is wanted.

    Raises:
        StoreError: It cannot be written.
    """
    note = JobNote(attempt=uuid.uuid4().hex[:12], key=task.key, engine=engine)
    write_note(folder, task.name, note)
    return note


def write_note(folder: Path, name: str, note: JobNote) -> None:
    """Keep a note.

    Raises:
        StoreError: It cannot be written.
    """
    write_json(file_of(folder, name, "job"), asdict(note), lasting=False)


def note_of(folder: Path, name: str) -> JobNote | None:
    """Who was told to do the task of that name; None: nobody, or it cannot be read."""
    try:
        content = json_of(file_of(folder, name, "job"))
        note = JobNote(**{field: content[field] for field in ("attempt", "key", "engine", "job")})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    said = [note.attempt, note.key, note.engine, *([] if note.job is None else [note.job])]
    # A name of a job that begins so would be an option to a scheduler's commands.
    whole = all(isinstance(word, str) and word and not word.startswith("-") for word in said)
    return note if whole else None


def notes_in(folder: Path) -> dict[str, JobNote]:
    """Notes of a run folder by their tasks' names."""
    names = [file.name.removesuffix(".job.json") for file in (folder / "tasks").glob("*.job.json")]
    return {name: note for name in sorted(names) if (note := note_of(folder, name)) is not None}


def withdraw(folder: Path, name: str) -> None:
    """Have whoever does the task end."""
    file_of(folder, name, "job").unlink(missing_ok=True)


def withdraw_all(folder: Path) -> None:
    """Have all tasks' processes end that schedulers started, and forget what those said that died: somebody else does the tasks now."""
    for name in notes_in(folder):
        withdraw(folder, name)
    for name in running_in(folder):
        file_of(folder, name, "progress").unlink(missing_ok=True)


def end_when_withdrawn(
    folder: Path, name: str, attempt: str, *, every: float = LOOK, end: Callable[[int], None] = os._exit
) -> None:
    """End this process as soon as its attempt is not the wanted one; return where it is, and go on looking.

    It is ended in the middle of whatever it does: checkpoints and records are whole or not there.
    """
    missing = 0

    def wanted() -> bool:
        nonlocal missing
        note = note_of(folder, name)
        missing = missing + 1 if note is None else 0
        return (
            note.attempt == attempt if note is not None else missing < 2
        )  # a shared disk may hide a file for a moment

    def look() -> None:
        while wanted():
            time.sleep(every)
        sys.stderr.write(f"{name}: attempt {attempt} is not wanted any more; this process ends\n")
        sys.stderr.flush()
        end(WITHDRAWN)

    note = note_of(folder, name)
    if note is not None and note.attempt != attempt:
        look()
    threading.Thread(target=look, daemon=True).start()
