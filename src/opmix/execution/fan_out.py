"""Many tasks at once: what `RunStore.step` does for one. Found records are not made again, a process that dies is replaced."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from opmix.errors import TrainingError
from opmix.execution.attempts import note_of
from opmix.execution.stragglers import Stragglers
from opmix.execution.tasks import Executor, Task, failure_of, file_of, hand_out, running_in
from opmix.progress import Advance, Progress
from opmix.runs.files import json_of
from opmix.runs.store import RunStore


def fan_out(
    store: RunStore,
    tasks: Sequence[Task],
    executor: Executor,
    *,
    progress: Progress,
    tries: int = 3,
    intact: Callable[[Task], bool] = lambda task: True,
) -> list[dict[str, Any]]:
    """Do tasks, or find them done; their results in order.

    Args:
        store: The run folder, held by this process.
        tasks: With different names.
        executor: Starts them.
        progress: Shows all of them.
        tries: How often a task is begun, in all.
        intact: Whether the files of a recorded task are still there.

    Raises:
        OpMixError: A task says that it cannot be done, or its process died `tries` times. What others finished is kept.
    """

    def found(task: Task) -> dict[str, Any] | None:
        result = store.found(task.name, task.key)
        return result if result is not None and intact(task) else None

    results = {task.name: found(task) for task in tasks}
    waiting = deque(task for task in tasks if results[task.name] is None)
    begun, done, total = Counter[str](), 0, len(waiting)
    for task in waiting:
        hand_out(store.folder, task)
    if total:
        with (
            _shown(progress, store.folder, waiting, executor.slots) as watched,
            closing(executor.run(store.folder, waiting)) as events,
        ):
            for ended in events:
                watched.look()
                if ended is None:
                    continue
                task = ended.task
                begun[task.name] += 1
                results[task.name] = found(task)
                watched.ended(task.name, well=results[task.name] is not None)
                if results[task.name] is not None:
                    done += 1
                    watched.advance(done, total)
                    continue
                if (failure := failure_of(store.folder, task)) is not None:
                    raise failure
                said = f"{task.name} on {ended.place}: {ended.error or 'it ended without a record'}"
                if begun[task.name] >= tries:
                    raise TrainingError(
                        f"{said}; that was try {begun[task.name]} of {tries}. What other tasks finished is kept: "
                        "mend the cause and run the same command again"
                    )
                progress.note(f"{said}; it is begun again from its last checkpoint")
                hand_out(store.folder, task)
                waiting.append(task)
    return [result for result in results.values() if result is not None]


_EVERY = 0.5  # seconds between two looks at what processes say, however much happens
_PAUSE = 20.0  # times what a look took until the next one: thousands of files are not read twice a second
_BARS = 16  # tasks that are shown one by one


class _Watched:
    """What the processes of tasks say in files: a bar each, up to a number, and who is slow."""

    def __init__(self, progress: Progress, folder: Path, names: Iterable[str], advance: Advance) -> None:
        self._progress, self._folder, self._names, self.advance = progress, folder, frozenset(names), advance
        self._bars: dict[str, tuple[str, Advance, ExitStack]] = {}
        self._stragglers = Stragglers()
        self._next = 0.0

    def look(self) -> None:
        """Show what is said, at most so often."""
        before = time.monotonic()
        if before < self._next:
            return
        running = running_in(self._folder) & self._names
        for name in self._bars.keys() - running:
            self._hide(name)
        for name in sorted(running):
            self._stragglers.seen(name)
            if name in self._bars or len(self._bars) < _BARS:
                self._show(name)
        for name, seconds, usual in self._stragglers.slow():
            note = note_of(self._folder, name)
            job = "" if note is None or note.job is None else f" (job {note.job})"
            self._progress.note(f"{name}{job} has taken {seconds:.0f} s so far; its siblings took {usual:.0f} s")
        after = time.monotonic()
        self._next = after + max(_EVERY, _PAUSE * (after - before))

    def _show(self, name: str) -> None:
        try:
            said = json_of(file_of(self._folder, name, "progress"))
            what, done, total = str(said["task"]), int(said["done"]), int(said["total"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return
        if name in self._bars and self._bars[name][0] != what:  # a task of many works is at the next one
            self._hide(name)
        if name not in self._bars:
            stack = ExitStack()
            self._bars[name] = what, stack.enter_context(self._progress.task(what, total)), stack
        self._bars[name][1](done, total)

    def _hide(self, name: str) -> None:
        if name in self._bars:
            self._bars.pop(name)[2].close()

    def ended(self, name: str, *, well: bool) -> None:
        """A task's process has ended."""
        self._stragglers.ended(name, well=well)
        self._hide(name)

    def close(self) -> None:
        """Take the bars away."""
        for name in list(self._bars):
            self._hide(name)


@contextmanager
def _shown(progress: Progress, folder: Path, tasks: Sequence[Task], slots: int) -> Iterator[_Watched]:
    """A bar for all, and one for each of those that run."""
    names = [task.name for task in tasks]
    many = f"{len(names)} tasks on {slots} slots" if len(names) > 1 else f"{len(names)} task"
    with progress.task(many, len(names)) as advance, closing(_Watched(progress, folder, names, advance)) as watched:
        yield watched
