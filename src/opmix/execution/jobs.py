"""A process for each task, started by an engine that somebody else runs: commands of a shell, Slurm, Ray.

An engine starts a command and tells when it is over, nothing else. What came of a task its record says; who does it, its job file
(`attempts`): a process that is started again finds there what still runs, and waits for it instead of starting it anew.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from opmix.errors import TrainingError
from opmix.execution.attempts import JobNote, noted, notes_in, withdraw, write_note
from opmix.execution.tasks import Ended, Task, failure_of, last_words
from opmix.runs.store import RunStore

_LOOK = 0.5  # seconds between two looks around
_TURN = 100  # jobs that are started before anybody looks around
_LATE = 30.0  # seconds that a shared disk may hide a record from this machine
_AGAIN = 20.0  # seconds before an engine that refused a task is asked again
_SILENT = 300.0  # seconds between two complaints that an engine does not answer
_REFUSALS = 3  # in a row, with nothing running, after which it is given up


class EngineError(Exception):
    """An engine refused a task or did not answer, as it may do now and then."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine is to start."""

    name: str
    """Of the task."""
    attempt: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Beside what the engine's own processes see."""
    folder: Path
    log: Path
    """What the process prints is appended to it."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """A job that has ended."""

    error: str | None = None
    """None: well, or the engine does not know how."""
    place: str = ""


class Engine(Protocol):
    """Starts commands somewhere."""

    kind: str
    """As the settings call it."""
    outlives: bool
    """Whether jobs go on when the process that started them is killed."""
    poll_seconds: float
    """Between two questions after jobs."""

    def check(self) -> str:
        """One sentence on what is started where, for people.

        Raises:
            ConfigError: It cannot be: the engine is not here, or does not give what is asked for.
        """

    def submit(self, job: Job) -> str:
        """Start a command, now or when there is room; what the engine calls it.

        Raises:
            EngineError: It refused.
        """

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        """Those of the jobs that are over; what is not known is not.

        Raises:
            EngineError: It did not answer.
        """

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        """Stop jobs, those that are over included; never raises."""

    def close(self) -> None:
        """Let go of the engine."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    task: Task
    note: JobNote
    over: Over | None = None
    since: float = 0.0
    """When it was over."""


class JobExecutor:
    """One job of an engine for each task, `slots` at once; see `Executor`.

    Args:
        engine: Starts them.
        slots: Jobs at once, those that wait for room included.
        environment: What their processes see beside the engine's own.
        prepare: Called once, before the first job is started.
        command: What a job runs; run folder, name and attempt follow.
        late: Seconds that a record may take to be seen from here.
    """

    def __init__(
        self,
        engine: Engine,
        slots: int,
        *,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
        command: Sequence[str] = (sys.executable, "-m", "opmix", "task"),
        late: float = _LATE,
    ) -> None:
        self.engine, self._slots, self._command, self._late = engine, slots, tuple(command), late
        self._environment = dict(environment or {})
        self._prepare: Callable[[], None] | None = prepare
        self._refusals, self._not_before, self._silent_until = 0, 0.0, 0.0

    @property
    def slots(self) -> int:
        """See `Executor`."""
        return self._slots

    def run(self, folder: Path, waiting: deque[Task]) -> Generator[Ended | None]:
        """See `Executor`."""
        running: dict[str, _Running] = {}
        try:
            if self._prepare is not None:
                self._prepare()
                self._prepare = None
                running |= self._adopted(folder, waiting)
            asked = -float("inf")
            while waiting or running:
                for _ in range(min(_TURN, self._slots - len(running))):
                    if waiting and time.monotonic() >= self._not_before:
                        self._begin(folder, waiting, running)
                if time.monotonic() - asked >= self.engine.poll_seconds:
                    self._ask(running)
                    asked = time.monotonic()
                for name in [name for name, one in running.items() if self._certain(folder, one)]:
                    yield self._ended(folder, running.pop(name))
                yield None
                time.sleep(min(_LOOK, self.engine.poll_seconds))
        finally:
            for name in running:
                withdraw(folder, name)
            self.engine.cancel({name: one.note for name, one in running.items()})

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def _adopted(self, folder: Path, waiting: deque[Task]) -> dict[str, _Running]:
        """What an earlier process of this run started and still runs, if it is still wanted; the rest is stopped."""
        wanted = {task.name: task for task in waiting}
        running: dict[str, _Running] = {}
        stopped: dict[str, JobNote] = {}
        for name, note in notes_in(folder).items():
            task = wanted.get(name)
            ours = note.engine == self.engine.kind and note.job is not None
            if task is not None and ours and self.engine.outlives and note.key == task.key:
                running[name] = _Running(task=task, note=note)
                waiting.remove(task)
            else:
                withdraw(folder, name)
                stopped |= {name: note} if ours else {}
        self.engine.cancel(stopped)
        return running

    def _begin(self, folder: Path, waiting: deque[Task], running: dict[str, _Running]) -> None:
        task = waiting.popleft()
        note = noted(folder, task, self.engine.kind)
        log = _log(folder, task)
        log.parent.mkdir(exist_ok=True)
        where = str(folder.resolve())
        job = Job(
            name=task.name,
            attempt=note.attempt,
            command=(*self._command, where, task.name, "--attempt", note.attempt),
            environment=self._environment,
            folder=folder.resolve(),
            log=log.resolve(),
        )
        running[task.name] = _Running(task=task, note=note)  # known before it is started: Ctrl-C may come any time
        try:
            note = replace(note, job=self.engine.submit(job))
        except EngineError as error:
            del running[task.name]
            withdraw(folder, task.name)
            waiting.appendleft(task)
            self._refused(error, bool(running))
            return
        running[task.name] = _Running(task=task, note=note)
        write_note(folder, task.name, note)
        self._refusals = 0

    def _refused(self, error: EngineError, others: bool) -> None:
        self._refusals += 1
        if not others and self._refusals >= _REFUSALS:
            raise TrainingError(
                f"executor.kind {self.engine.kind}: no task could be started in {self._refusals} tries: {error}; "
                "what is finished is kept: mend the cause and run the same command again"
            )
        self._not_before = time.monotonic() + (_AGAIN if others else self.engine.poll_seconds)

    def _ask(self, running: dict[str, _Running]) -> None:
        asked = {name: one.note for name, one in running.items() if one.over is None}
        try:
            over = self.engine.over(asked) if asked else {}
        except EngineError as error:  # jobs go on without it
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + _SILENT
                logging.getLogger("opmix").warning("executor %s: %s; asked again", self.engine.kind, error)
            return
        for name, how in over.items():
            running[name] = replace(running[name], over=how, since=time.monotonic())

    def _certain(self, folder: Path, one: _Running) -> bool:
        """Whether a job is over and what it left is here, or will not come."""
        if one.over is None:
            return False
        late = self._late if one.over.error is None else self._late / 6
        return time.monotonic() - one.since >= late or _left(folder, one.task)

    def _ended(self, folder: Path, one: _Running) -> Ended:
        over, error = one.over or Over(), None
        withdraw(folder, one.task.name)
        if over.error is not None or not _left(folder, one.task):
            error = f"{over.error or 'it ended without a record'}{last_words(_log(folder, one.task))}"
        return Ended(task=one.task, error=error, place=over.place or f"job {one.note.job}")


def _left(folder: Path, task: Task) -> bool:
    """Whether a process left a record or an error."""
    return RunStore(folder).found(task.name, task.key) is not None or failure_of(folder, task) is not None


def _log(folder: Path, task: Task) -> Path:
    return folder / "logs" / f"{task.name}.txt"


_TOLD = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")


def job_environment(cpus: int, gpus: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a job's process sees: as many threads as it has cores, unless said otherwise here; and where things are. No secrets."""
    named = {name: inherited[name] for name in _TOLD if name in inherited}
    return {"TOKENIZERS_PARALLELISM": "false", **({} if gpus else {"OMP_NUM_THREADS": str(cpus)}), **named}
