"""Lives as tasks for other processes: a seed each, or what one method does of it. What comes back are the records of their steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opmix.execution.attempts import note_of, withdraw_all
from opmix.execution.context import Context, Worker
from opmix.execution.settings import ExecutorSettings
from opmix.execution.tasks import Task
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.runtime import LifeRuntime
from opmix.lifecycle.steps import Step
from opmix.mixture_search.hand_over import check_others, others
from opmix.models.device import device_type
from opmix.probes.handed_out import Elsewhere, check_same
from opmix.progress import Progress
from opmix.runs.lock import break_locks
from opmix.runs.store import RunStore, fingerprint
from opmix.settings import changed


@dataclass(frozen=True, kw_only=True)
class Life:
    """Stages of one seed that one process lives, one after another."""

    home: str
    """Folder in the run folder."""
    seed: int
    steps: Sequence[Step]
    """All that are done when it is over, in order."""
    entrant: str | None = None
    """Whose stages of a comparison; None: those that all share."""

    @property
    def name(self) -> str:
        """Of the task, and of the record that says that it is over."""
        return f"life-{self.home.replace('/', '-')}"

    @property
    def inputs(self) -> dict[str, Any]:
        """Of that record: the steps' keys."""
        return {"steps": {step.name: step.key for step in self.steps}}

    def handed_out(self) -> Task:
        """For another process."""
        payload = {"seed": self.seed, "entrant": self.entrant}
        return Task(name=self.name, key=fingerprint(self.inputs), kind="life", payload=payload)

    def finished(self, store: RunStore) -> bool:
        """Whether all records are there, and the model at the end."""
        last = self.steps[-1].stage
        if last is not None and not (store.folder / self.home / last.label / "model" / "config.json").exists():
            return False
        return all(store.found(step.name, step.key) is not None for step in self.steps)


def live_elsewhere(
    runtime: LifeRuntime,
    lives: Sequence[Life],
    worker: Worker,
    told: Callable[[LifecycleConfig], Mapping[str, Any]],
    *,
    before: Sequence[Life] = (),
) -> None:
    """Have lives lived by other processes, where the settings ask for some and several are left; else nothing is done.

    A process does all of a life itself: what its searches do is not handed out again.

    Args:
        runtime: Of the process that holds the run folder.
        lives: None needs anything of another.
        worker: Who is to do them.
        told: The configuration that a worker reads, around its life.
        before: Lives that `lives` go on from.

    Raises:
        ConfigError: The executor cannot do them; says why.
        OpMixError: What a life says that stopped it, or its process died as often as it may. What others finished is kept.
    """
    store, wanted = runtime.store, runtime.life.search.executor
    left, begun = [life for life in lives if not life.finished(store)], [*before, *lives]
    several = len(left) > 1 or any(note_of(store.folder, life.name) is not None for life in begun)
    here = not (wanted.elsewhere and several and wanted.ranks == 1)
    if store.held and (here or wanted.kind == "local"):
        withdraw_all(store.folder)
    if here:
        if wanted.elsewhere and len(left) > 1:
            runtime.progress.note(
                f"executor.resources.gpus: {wanted.ranks}; a life that is a task has one GPU, so {len(left)} lives "
                "come one after another here, and the works of their searches are handed out"
            )
        return
    check_others(wanted, store, runtime.make_trainer)
    model = runtime.life.model
    device = device_type(None if model is None else model.device)
    alone = _alone(runtime.life, device)

    def prepare() -> None:
        Context(worker=worker, config=told(alone), base=runtime.base).write(store.folder)

    processes = others(wanted, store, device=device, prepare=prepare)
    for some in ([life for life in before if not life.finished(store)], left):
        _hand_out(runtime, processes, some)


def _hand_out(runtime: LifeRuntime, processes: Elsewhere, lives: Sequence[Life]) -> None:
    if not lives:
        return
    by_name, store = {life.name: life for life in lives}, runtime.store
    store.event("handed_out", process=os.getpid(), tasks=list(by_name))
    tasks = [life.handed_out() for life in lives]
    processes.do(store, tasks, runtime.progress, lambda task: by_name[task.name].finished(store))


def _alone(life: LifecycleConfig, device: str) -> LifecycleConfig:
    """The life as a process lives it that hands nothing out and sees one GPU at most."""
    told = changed(life, search=changed(life.search, executor=ExecutorSettings()))
    return changed(told, model=changed(told.model, device="cuda")) if told.model and device == "cuda" else told


def live_task(
    runtime: LifeRuntime, task: Task, life: Life, progress: Progress, live: Callable[[LifeRuntime], object]
) -> None:
    """Live what was handed out, in a process that does not hold the run folder, and leave its record.

    Args:
        runtime: Of this process.
        task: What was handed out.
        life: The same as this process sees it.
        progress: Says how far it is.
        live: Does it.

    Raises:
        StoreError: This process sees other inputs than the one that handed it out.
        OpMixError: Whatever stops the life.
    """
    check_same(task, life.name, life.inputs)
    break_locks(runtime.folder / life.home)
    live(replace(runtime, progress=progress))
    runtime.store.step(life.name, life.inputs, dict)
