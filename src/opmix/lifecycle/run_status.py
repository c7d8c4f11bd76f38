"""A run folder as it is now: who works on it, its steps, where the time went. What a life's steps are told from is `lifecycle.status`.

Imports neither numpy nor any settings: a search's or fit's folder is told in a moment.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from opmix.compute.cost import Cost
from opmix.errors import StoreError
from opmix.execution.tasks import file_of, running_in
from opmix.results.asked import AskedFile
from opmix.results.files import read_object
from opmix.runs.files import alive, json_of
from opmix.runs.lock import lock_holder
from opmix.runs.store import RunStore
from opmix.runs.trace import Spent, read_spans

DATA = "data.json"
"""What only the folder of a life or of a comparison holds (`lifecycle.data_file`)."""

State = Literal["done", "stale", "running", "left"]


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """One step of a run."""

    name: str
    kind: str
    state: State
    why: tuple[str, ...] = ()
    """Of a stale step."""
    cost: Cost = field(default_factory=Cost)
    """Spent."""
    planned: Mapping[str, float] = field(default_factory=dict)
    """FLOPs still to come by purpose; empty until the model's shape is known."""
    peak_memory: int | None = None
    finished: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run folder as it is now."""

    folder: Path
    steps: tuple[StepStatus, ...]
    holder: int | None
    """Process that works on it."""
    task: Mapping[str, Any] | None
    """What that process is doing: task, done, total."""
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same of other processes that work for it, by the name of what was handed out to them."""
    changed: tuple[str, ...]
    """Domains whose files have changed since they were read."""
    spent_on: Spent = field(default_factory=lambda: Spent({}))
    """Where the time went, as the run's own trace says; empty where there is none."""

    @property
    def spent(self) -> Cost:
        """Of the finished steps."""
        return Cost.sum(step.cost for step in self.steps if step.state == "done")

    @property
    def flops_left(self) -> dict[str, float]:
        """By purpose."""
        return dict(Cost.sum(Cost(flops=step.planned) for step in self.steps if step.state != "done").flops)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None where nothing of the kind has been done yet."""
        spent, total = self.spent, 0.0
        for purpose, flops in self.flops_left.items():
            done, took = spent.flops.get(purpose, 0.0), spent.seconds.get(purpose, 0.0)
            if not done:
                if "training" not in spent.seconds:
                    return None
                done, took = spent.flops["training"], spent.seconds["training"]
            total += flops * took / done
        return total


def status_now(folder: Path) -> RunStatus:
    """What every run folder says, without its steps."""
    holder = _holder(folder)
    there = holder is not None and (folder / "progress.json").is_file()
    task = read_object(folder / "progress.json") if there else None
    return RunStatus(
        folder=folder,
        steps=(),
        holder=holder,
        task=task,
        tasks={} if holder is None else _tasks(folder),
        changed=(),
        spent_on=Spent.of(read_spans(folder)),
    )


def decision_status(folder: Path) -> RunStatus:
    """The state of a folder of `opmix search`, `fit` or `demo`: what is recorded, and whether its result is there.

    Raises:
        StoreError: No run of opmix.
    """
    place = folder / "steps"
    names = [p.relative_to(place).with_suffix("").as_posix() for p in place.glob("**/*.json")]
    result = folder / "mixture.json"
    if not names and not any(p.is_file() for p in (result, folder / "manifest.json", folder / "lock")):
        raise StoreError(f"{folder}: no run of opmix; expected the --out folder of a verb, such as `opmix run`")
    store, found = RunStore(folder), status_now(folder)
    records = {name: record for name in names if (record := store.record(name)) is not None}
    done = [
        StepStatus(name=name, kind="step", state="done", finished=str(record.get("finished", "")))
        for name, record in sorted(records.items(), key=lambda item: str(item[1].get("finished")))
    ]
    asked = AskedFile.find(folder)
    done += [
        StepStatus(name=f"run {run.name}", kind="run", state="done" if run.told else "left")
        for run in (asked.runs if asked is not None else ())
    ]
    left: State = "done" if result.is_file() else "running" if found.holder is not None else "left"
    return replace(found, steps=(*done, StepStatus(name="decision", kind="decision", state=left)))


def _tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """What the processes of tasks say; a file that is just being removed or replaced says nothing."""
    said = {}
    for name in sorted(running_in(folder)):
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found = json_of(file_of(folder, name, "progress"))
            said[name] = {key: found[key] for key in ("task", "done", "total")}
    return said


def _holder(folder: Path) -> int | None:
    found = lock_holder(folder)
    return found[0] if found is not None and (found[1] != socket.gethostname() or alive(found[0])) else None
