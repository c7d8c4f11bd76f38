"""Which probes of a search are trained as one batch, and what is kept of that until each has its own record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix.probes.at_once import train_at_once, why_one_by_one
from opmix.probes.handed_out import PlannedProbe
from opmix.probes.tasks import ProbeRuntime
from opmix.runs.store import RunStore, fingerprint
from opmix.training.checkpoints import drop_checkpoints

_NAME = "at-once-"
"""Before the key of a batch, in the name of its record and of the folder of its checkpoints."""


@dataclass(frozen=True)
class Batches:
    """Probes that were trained together and have no records of their own yet.

    A batch is one step of the run. Killed in the middle of it, all of it is trained again, so that the same probes meet each other; killed
    after it, every probe finds its result here.
    """

    store: RunStore
    whole: Callable[[PlannedProbe], bool]
    """Whether a probe's files can be read to their end."""

    def train(self, probes: Sequence[PlannedProbe], size: int, runtime: ProbeRuntime) -> str | None:
        """Train those of one design and stop that are missing, up to `size` together; a single one is left.

        Returns:
            Why they have to be trained one by one, where they have to.

        Raises:
            TrainingError: One of them diverged.
            StoreError: A checkpoint cannot be written.
        """
        missing = [probe for probe in probes if not self._is_done(probe)]
        if size < 2 or len(missing) < 2:
            return None
        if (why := why_one_by_one(missing[0].task, runtime)) is not None:
            return f"probes.at_once: {size}, but probes are trained one by one: {why}"
        for part in np.array_split(np.arange(len(missing)), -(-len(missing) // size)):
            if len(part) > 1:
                self._train([missing[place] for place in part], runtime)
        return None

    def result(self, probe: PlannedProbe) -> dict[str, Any] | None:
        """Of a probe that was trained in a batch."""
        key = fingerprint(probe.inputs)
        return next((r[key] for _, r in self._results() if key in r), None) if self.whole(probe) else None

    def forget(self, but: Sequence[PlannedProbe] = ()) -> None:
        """Remove the records of batches, but for those with one of these probes: others may be written where theirs are kept."""
        kept = {fingerprint(probe.inputs) for probe in but}
        for name, results in self._results():
            if not kept & results.keys():
                self.store.forget(name)

    def _is_done(self, probe: PlannedProbe) -> bool:
        recorded = self.store.found(probe.step, fingerprint(probe.inputs)) is not None and self.whole(probe)
        return recorded or self.result(probe) is not None

    def _results(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in sorted((self.store.folder / "steps").glob(f"{_NAME}*.json")):
            yield file.stem, (self.store.record(file.stem) or {}).get("result", {})

    def _train(self, probes: Sequence[PlannedProbe], runtime: ProbeRuntime) -> None:
        keys, tasks = [fingerprint(probe.inputs) for probe in probes], [probe.task for probe in probes]
        run = fingerprint([task.key for task in tasks])  # the same for every stop of the same probes
        parts = self.store.folder / "probes" / f"{_NAME}{run[:8]}-parts"

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            totals = train_at_once(tasks, runtime, parts, key=run)
            seconds = (time.perf_counter() - started) / len(tasks)
            return {key: {**trained.json(), "seconds": seconds} for key, trained in zip(keys, totals, strict=True)}

        self.store.step(f"{_NAME}{run[:8]}", {"probes": keys}, work, intact=lambda: all(map(self.whole, probes)))
        if tasks[0].stop == tasks[0].settings.num_steps:
            drop_checkpoints(parts)
