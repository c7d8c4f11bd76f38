"""What the processes of `opmix compare` make of its run folder: the data once, then one method's part of a seed after another."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from opmix.comparison.config import CompareConfig, checked_comparison
from opmix.comparison.entrants import Entrant, entrant_of, live_own, live_shared, shared_lives
from opmix.execution.context import FILE, Context
from opmix.execution.tasks import Task
from opmix.execution.worker import Do
from opmix.lifecycle.handed_out import live_task
from opmix.lifecycle.runtime import LifeRuntime, make_runtime
from opmix.progress import Progress, Silent
from opmix.runs.store import RunStore
from opmix.settings.loading import validated


def comparison_worker(folder: Path) -> Do:
    """Read the data of a comparison; what comes back lives the shared stages of a seed, or a method's own.

    Raises:
        StoreError: No comparison handed out tasks there.
        OpMixError: The data cannot be read.
    """
    told = Context.read(folder)
    config = checked_comparison(validated(CompareConfig, told.config, where=str(folder / FILE)))
    # The lock is held by the process that waits for the records.
    shared = make_runtime(config.life, told.base, RunStore(folder), Silent(), None)
    before = shared_lives(config, shared)

    @cache
    def entrant(name: str) -> Entrant:
        return entrant_of(config, name, shared)

    def do(task: Task, progress: Progress) -> None:
        seed, name = int(task.payload["seed"]), task.payload["entrant"]
        if name is None:
            live_task(shared, task, before[seed], progress, lambda mine: live_shared(config, mine, before[seed]))
            return
        own = entrant(str(name))

        def live(mine: LifeRuntime) -> None:
            _, state = live_shared(config, replace(shared, progress=progress), before[seed])
            live_own(config, replace(own, runtime=mine), seed, state)

        live_task(own.runtime, task, own.lives[seed], progress, live)

    return do
