"""Many tasks at once: what `RunStore.step` does for one. Found records are not made again, a process that dies is replaced."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from opmix.errors import TrainingError
from opmix.execution.tasks import Executor, Task, failure_of, file_of, hand_out
from opmix.progress import Advance, Progress
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
    begun, total = Counter[str](), len(waiting)
    if not total:
        return [result for result in results.values() if result is not None]
    for task in waiting:
        hand_out(store.folder, task)
    with (
        _shown(progress, store.folder, waiting, executor.slots) as (look, advance),
        closing(executor.run(store.folder, waiting)) as events,
    ):
        for ended in events:
            look()
            if ended is None:
                continue
            task = ended.task
            begun[task.name] += 1
            results[task.name] = found(task)
            if results[task.name] is not None:
                advance(sum(results[t.name] is not None for t in tasks) - (len(tasks) - total), total)
                continue
            if (failure := failure_of(store.folder, task)) is not None:
                raise failure
            said = f"{task.name} on {ended.place}: {ended.error or 'it ended without a record'}"
            if begun[task.name] >= tries:
                raise TrainingError(
                    f"{said}; that was try {begun[task.name]} of {tries}. What other tasks finished is kept: mend the "
                    "cause and run the same command again"
                )
            progress.note(f"{said}; it is begun again from its last checkpoint")
            hand_out(store.folder, task)
            waiting.append(task)
    return [result for result in results.values() if result is not None]


@contextmanager
def _shown(
    progress: Progress, folder: Path, tasks: Sequence[Task], slots: int
) -> Iterator[tuple[Callable[[], None], Advance]]:
    """A bar for all, and one for each that runs, as their processes say in files."""
    bars: dict[str, tuple[Advance, ExitStack]] = {}
    names = [task.name for task in tasks]

    def look() -> None:
        for name in names:
            try:
                said = json.loads(file_of(folder, name, "progress").read_text(encoding="utf-8"))
                what, done, total = str(said["task"]), int(said["done"]), int(said["total"])
            except (OSError, ValueError, TypeError, KeyError):
                said = None
            if said is None:  # not begun, or over
                if name in bars:
                    bars.pop(name)[1].close()
                continue
            if name not in bars:
                stack = all_bars.enter_context(ExitStack())
                bars[name] = stack.enter_context(progress.task(what, total)), stack
            bars[name][0](done, total)

    with ExitStack() as all_bars:
        many = f"{len(names)} tasks on {slots} slots" if len(names) > 1 else f"{len(names)} task"
        yield look, all_bars.enter_context(progress.task(many, len(names)))
