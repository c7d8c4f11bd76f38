"""A search's works as tasks for other processes: what is written of a probe and of a sweep, and read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opmix.errors import StoreError
from opmix.execution.fan_out import fan_out
from opmix.execution.tasks import Executor, Task
from opmix.mixing.mixture import InterpolationWeights
from opmix.probes.kinds import names_of
from opmix.probes.tasks import ProbeTask
from opmix.progress import Progress
from opmix.runs.store import RunStore, fingerprint
from opmix.runs.trace import span


@dataclass(frozen=True, kw_only=True)
class PlannedProbe:
    """A probe of a search: its task, and the record that it leaves."""

    number: int
    """In the design."""
    step: str
    """Name of the record."""
    whole: Mapping[str, Any]
    """Inputs of the whole run."""
    inputs: Mapping[str, Any]
    """Of the record: `whole`, and where the run stops before its end."""
    task: ProbeTask
    order: int = 0
    """Of the data; see `Fidelity`."""

    def handed_out(self, save_every: int | None) -> Task:
        """For another process, with a checkpoint every so many steps."""
        said = {"probe": self.task.probe, "mixture": self.task.mixture, "stop": self.task.stop}
        payload = {
            "number": self.number,
            **said,
            "save_every": save_every,
            **({"order": self.order} if self.order else {}),
        }
        return Task(name=self.step, key=fingerprint(self.inputs), kind="probe", payload=payload)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Interpolations of kept probes to be evaluated, or some of them."""

    name: str
    """Of the record and the table."""
    probes: Mapping[str, Path]
    """Folder by fingerprint."""
    points: Sequence[InterpolationWeights]
    thinning: int = 1
    """One in so many held-out sequences."""

    def parts(self, num: int) -> list[Sweep]:
        """At most `num` sweeps of nearly as many points each, in order."""
        cuts = np.array_split(np.arange(len(self.points)), min(num, len(self.points)))
        return [
            replace(self, name=f"{self.name}-part-{k}", points=[self.points[i] for i in cut])
            for k, cut in enumerate(cuts)
        ]

    def handed_out(self, inputs: Mapping[str, Any]) -> Task:
        """For another process; `inputs` are those of the record."""
        payload = {
            "probes": {key: folder.name for key, folder in self.probes.items()},
            "points": [point.weights.tolist() for point in self.points],
            "thinning": self.thinning,
        }
        return Task(name=self.name, key=fingerprint(inputs), kind="sweep", payload=payload)

    @classmethod
    def of(cls, task: Task, folder: Path) -> Sweep:
        """What `handed_out` wrote; probes are kept in `folder`."""
        said = task.payload
        points = [InterpolationWeights(names_of(len(said["probes"])), np.array(w)) for w in said["points"]]
        probes = {key: folder / name for key, name in said["probes"].items()}
        return cls(name=task.name, probes=probes, points=points, thinning=said["thinning"])


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Other processes that do a run's works."""

    executor: Executor
    tries: int
    save_every: int
    """Steps between a probe's checkpoints."""

    def do(self, store: RunStore, tasks: Sequence[Task], progress: Progress, intact: Callable[[Task], bool]) -> None:
        """Have tasks done that are not; see `fan_out`."""
        with span("other processes work", "training"):
            fan_out(store, tasks, self.executor, progress=progress, tries=self.tries, intact=intact)


def check_same(task: Task, name: str, inputs: Mapping[str, Any]) -> None:
    """Refuse to do something else than what was handed out.

    Raises:
        StoreError: This process sees other inputs.
    """
    if (name, fingerprint(inputs)) != (task.name, task.key):
        raise StoreError(
            f"task {task.name}: this process sees another model, other data or other settings than the one that handed "
            "it out; expected the same files on both (and a model that its copy on disk gives back exactly): set "
            "`executor.slots: 1`"
        )
