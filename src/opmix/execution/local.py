"""Processes of this machine, one a slot, that stay until their run folder is given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, TypeVar

from opmix.execution.tasks import Ended, Task, last_words

_LOOK = 0.5  # seconds between two looks around
_PATIENCE = 10.0  # seconds that a process is given to end


class LocalExecutor:
    """`slots` processes of `opmix task`; see `Executor`.

    Args:
        slots: Processes at once.
        devices: GPU of each slot, as `CUDA_VISIBLE_DEVICES` names it; empty: the CPU, one thread each.
        prepare: Called once, before the first process is started.
        command: What a process runs; the run folder follows.
    """

    def __init__(
        self,
        slots: int,
        *,
        devices: Sequence[str] = (),
        prepare: Callable[[], None] = lambda: None,
        command: Sequence[str] = (sys.executable, "-m", "opmix", "task"),
    ) -> None:
        self._slots = [_Slot(number, devices[number] if devices else None, tuple(command)) for number in range(slots)]
        self._prepare: Callable[[], None] | None = prepare

    @property
    def slots(self) -> int:
        """See `Executor`."""
        return len(self._slots)

    def run(self, folder: Path, waiting: deque[Task]) -> Generator[Ended | None]:
        """See `Executor`."""
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        try:
            while waiting or any(slot.task for slot in self._slots):
                for slot in self._slots:
                    if waiting and slot.task is None:
                        slot.begin(folder, waiting.popleft())
                busy = {slot.answers.fileno(): slot for slot in self._slots if slot.task is not None}
                over = wait(list(busy), timeout=_LOOK)
                if not over:
                    yield None
                for number, slot in busy.items():
                    if number in over:
                        yield slot.ended()
        finally:
            self._stop([slot for slot in self._slots if slot.task is not None])

    def close(self) -> None:
        """End all processes."""
        self._stop(self._slots)

    def _stop(self, slots: Sequence[_Slot]) -> None:
        for slot in slots:
            slot.ask_to_end()
        for slot in slots:
            slot.end()


class _Slot:
    """One process, started when there is something to do, and again when it has died."""

    def __init__(self, number: int, device: str | None, command: tuple[str, ...]) -> None:
        self.number, self.device, self.command = number, device, command
        self.task: Task | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._from = Path(), 0

    @property
    def answers(self) -> IO[bytes]:
        """A line for each task that is over; its end: the process has died."""
        return _there(_there(self._process).stdout)

    def begin(self, folder: Path, task: Task) -> None:
        """Give a task to the process, which may have to be started."""
        if self._process is None or self._process.poll() is not None:
            self._start(folder)
        self.task, self._from = task, self._log.stat().st_size
        names = _there(_there(self._process).stdin)
        with suppress(BrokenPipeError):  # it has died just now: `answers` says so
            names.write(f"{task.name}\n".encode())

    def _start(self, folder: Path) -> None:
        self.end()
        self._log = folder / "logs" / f"worker-{self.number}.txt"
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, str(folder.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(self.device),
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a terminal is for whoever waits for it, who ends it
            )

    def ended(self) -> Ended:
        """How the task ended, when `answers` has something to say."""
        task, answer = _there(self.task), self.answers.readline()
        self.task, place = None, f"slot {self.number}"
        if answer.decode(errors="replace").strip() == task.name:
            return Ended(task=task, place=place)
        self.end()
        code = _there(self._process).returncode
        how = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
        return Ended(task=task, error=f"{how}{last_words(self._log, self._from)}", place=place)

    def ask_to_end(self) -> None:
        """Close the process's input: it ends, whatever it does (`worker.serve`)."""
        self.task = None
        if self._process is not None:
            with suppress(OSError):
                _there(self._process.stdin).close()

    def end(self) -> None:
        """Wait for the end of the process, and bring it about where it does not come."""
        self.ask_to_end()
        if self._process is None:
            return
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.answers.close()


_Thing = TypeVar("_Thing")


def _there(thing: _Thing | None) -> _Thing:
    """What must be there while a task is being done."""
    assert thing is not None
    return thing


def environment(device: str | None, inherited: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What a process of a slot sees: its own GPU, or one thread."""
    own = {"OMP_NUM_THREADS": "1"} if device is None else {}
    chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    return {"TOKENIZERS_PARALLELISM": "false", **own, **inherited, **chosen}
