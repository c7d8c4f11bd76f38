"""What the processes of `opmix run` make of its run folder: a life's data once, then one seed after another."""

from __future__ import annotations

from pathlib import Path

from opmix.execution.context import FILE, Context
from opmix.execution.tasks import Task
from opmix.execution.worker import Do
from opmix.lifecycle.handed_out import live_task
from opmix.lifecycle.life import live_seed, seeds_of
from opmix.lifecycle.loading import LifecycleConfig, checked_trainers
from opmix.lifecycle.runtime import make_runtime
from opmix.progress import Progress, Silent
from opmix.runs.store import RunStore
from opmix.settings.loading import validated


def life_worker(folder: Path) -> Do:
    """Read the data of a life; what comes back lives a seed of it.

    Raises:
        StoreError: No life handed out tasks there.
        OpMixError: The data cannot be read.
    """
    told = Context.read(folder)
    config = checked_trainers(validated(LifecycleConfig, told.config, where=str(folder / FILE)))
    # The lock is held by the process that waits for the records.
    runtime = make_runtime(config, told.base, RunStore(folder), Silent(), None)
    lives = {life.seed: life for life in seeds_of(runtime)}

    def do(task: Task, progress: Progress) -> None:
        life = lives[int(task.payload["seed"])]
        live_task(runtime, task, life, progress, lambda mine: live_seed(mine, life))

    return do
