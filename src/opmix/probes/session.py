"""Probes and proxies of one search, each done once: the run folder as the memo around the tasks, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opmix.compute.budget import MICRO
from opmix.compute.ledger import Entry, Ledger
from opmix.execution.tasks import Task
from opmix.mixing.mixture import InterpolationWeights, ProbeDesign
from opmix.models.layers import model_fingerprint
from opmix.probes.batches import Batches
from opmix.probes.evaluation import HeldOut
from opmix.probes.handed_out import Elsewhere, PlannedProbe, Sweep, check_same
from opmix.probes.interpolation import Backend, Proxies
from opmix.probes.kinds import kind_of
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import (
    ProbeRuntime,
    ProbeTask,
    ProxyEvaluator,
    ProxyLosses,
    joined,
    probe_arguments,
    train_probe,
)
from opmix.probes.token_tables import TokenTables, load_tables, save_tables, token_tables
from opmix.progress import Progress
from opmix.protocols.mixing_method import FULL, Fidelity, Simulation
from opmix.runs.store import RunStore, fingerprint
from opmix.training.checkpoints import drop_checkpoints
from opmix.training.plan import supervised_per_step


def seed_in_order(seed: int, order: int) -> int:
    """A search's own seed, or one that follows from it and a number of another order of the data."""
    return seed if order == 0 else int(np.random.SeedSequence([seed, order]).generate_state(1)[0] >> 1)


@dataclass(frozen=True, kw_only=True)
class ProbeSession:
    """The probes of one search, resumable through a run folder; the model is given back as it was."""

    runtime: ProbeRuntime
    evaluator: ProxyEvaluator
    trainer: Mapping[str, Any]
    """Of the full run."""
    store: RunStore
    data_fingerprint: str
    ledger: Ledger
    seed: int = 0
    document_mask: bool = False
    elsewhere: Elsewhere | None = None
    """Other processes that train and evaluate; None: this one does."""
    _booked: set[str] = field(default_factory=set, init=False, repr=False)
    """Probes that were charged, and notes that were said."""

    @property
    def settings(self) -> ProbeSettings:
        """How every probe is trained."""
        return self.evaluator.settings

    @property
    def held_out(self) -> Sequence[HeldOut]:
        """What models are compared on."""
        return self.evaluator.held_out

    @property
    def probe_tokens(self) -> float:
        """Supervised tokens that each probe is trained on: the same for all."""
        return self.settings.num_steps * supervised_per_step(self.runtime.rows, self.trainer)

    def simulate(
        self,
        design: ProbeDesign,
        points: Sequence[InterpolationWeights],
        *,
        label: str = "proxies",
        fidelity: Fidelity = FULL,
    ) -> Simulation:
        """Train what is missing of the design's probes and evaluate every point.

        Raises:
            TrainingError: A probe diverged.
        """
        before = [self.ledger.total("flops", [what]) for what in ("probes", "proxies")]
        base = self._base
        probes = self._trained(design, base, fidelity.steps, fidelity.order)
        swept = self._evaluated(Sweep(name=label, probes=probes, points=points, thinning=fidelity.thinning), base)
        return Simulation(
            metrics=swept.points.names,
            losses=swept.points.losses,
            standard_errors=swept.points.standard_errors,
            nll=swept.points.nll,
            tokens=swept.points.tokens,
            baseline=swept.baseline,
            gram=swept.gram,
            points=tuple(points),
            fidelity=fidelity,
            probe_tokens=self.probe_tokens * (fidelity.steps or self.settings.num_steps) / self.settings.num_steps,
            training_flops=self.ledger.total("flops", ["probes"]) - before[0],
            evaluation_flops=self.ledger.total("flops", ["proxies"]) - before[1],
        )

    @contextmanager
    def proxies(
        self, design: ProbeDesign, steps: int | None = None, *, backend: Backend | None = None
    ) -> Iterator[Proxies]:
        """Interpolations of the design's probes after `steps` (None: at their end); missing ones are trained.

        Raises:
            TrainingError: A probe diverged.
        """
        folders = list(self._trained(design, self._base, steps).values())
        backend, kind = backend or self.evaluator.backend, kind_of(self.settings)
        with kind.interpolated(self.runtime.model, self.settings, folders, backend) as (proxies, _):
            yield proxies

    def token_losses(self, design: ProbeDesign, *, label: str, thinning: int = 1) -> TokenTables:
        """See `MethodContext`; missing probes are trained.

        Raises:
            TrainingError: A probe diverged.
        """
        base, name = self._base, f"tokens-{label}"
        folders = self._trained(design, base, None)
        held_out = [h.thinned(thinning) for h in self.held_out if h.questions is None]
        file, sets = self.store.folder / "tables" / f"{name}.npz", [h.name for h in held_out]

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            save_tables(token_tables(self.evaluator, list(folders.values()), held_out, name), file)
            return {"seconds": time.perf_counter() - started}

        thinned = {"thinning": thinning} if thinning > 1 else {}
        inputs = {"probes": list(folders), "backend": self.evaluator.backend, **base, **thinned}
        result, _ = self.store.step(name, inputs, work, intact=lambda: load_tables(file, sets) is not None)
        tokens, flops = (
            len(folders) * sum(h.input_ids.size for h in held_out),
            self.evaluating(held_out, len(folders) - 1),
        )
        seconds = float(result["seconds"])
        self.ledger.add(Entry(step=name, purpose="proxies", tokens=tokens, flops=flops, seconds=seconds))
        found = load_tables(file, sets)
        assert found is not None
        return found

    def evaluating(self, held_out: Sequence[HeldOut], num_points: int) -> float:
        """FLOPs of a sweep: the current model and every point once."""
        each = sum(h.input_ids.size * self.runtime.shape.forward(h.input_ids.shape[1]) for h in held_out)
        return each * (num_points + 1)

    @property
    def _base(self) -> dict[str, Any]:
        """What every step depends on."""
        return {"model": model_fingerprint(self.runtime.model), "data": self.data_fingerprint, "seed": self.seed}

    def perform(self, task: Task, progress: Progress) -> None:
        """Do what another process's session of the same search handed out, and leave its record.

        Raises:
            StoreError: The inputs that this process sees are not those that the task was made of.
            TrainingError: A probe diverged, or a loss is not finite.
        """
        runtime, base, said = replace(self.runtime, progress=progress), self._base, task.payload
        here = replace(self, runtime=runtime, evaluator=replace(self.evaluator, runtime=runtime))
        if task.kind == "probe":
            probe = here._planned(
                said["number"], said["probe"], said["mixture"], base, said["stop"], said.get("order", 0)
            )
            check_same(task, probe.step, probe.inputs)
            here._done(replace(probe, task=replace(probe.task, save_every=said["save_every"])))
        else:
            sweep = Sweep.of(task, self.store.folder / "probes")
            check_same(task, sweep.name, here._inputs_of(sweep, base))
            here._swept(sweep, base)

    def _planned(
        self, number: int, probe: str, mixture: Mapping[str, float], base: Mapping[str, Any], stop: int, order: int
    ) -> PlannedProbe:
        """A probe that is to be trained to `stop`, and where it is kept."""
        arguments, objective = probe_arguments(self.settings, self.trainer), self.runtime.objective
        whole = {
            **base,
            "mixture": mixture,
            "settings": self.settings.of_a_run(),
            "trainer": {name: value for name, value in arguments.items() if name != MICRO},
            "document_mask": self.document_mask,
            "objective": [objective.name, objective.settings()],
            **({"order": order} if order else {}),
        }
        inputs = whole if stop == self.settings.num_steps else {**whole, "at": stop}
        place, name = self._place(number, probe, fingerprint(inputs), stop), f"probe_{number}"
        task = ProbeTask(
            probe=probe,
            mixture=mixture,
            settings=self.settings,
            trainer=arguments,
            seed=seed_in_order(self.seed, order),
            stop=stop,
            out=self.store.folder / "probes" / place,
            parts=self.store.folder / "probes" / f"{place.removesuffix(f'-at-{stop}')}-parts",
            key=fingerprint([whole, name]),
            name=name,
            document_mask=self.document_mask,
        )
        return PlannedProbe(number=number, step=f"probe-{place}", whole=whole, inputs=inputs, task=task, order=order)

    def _trained(
        self, design: ProbeDesign, base: Mapping[str, Any], stop: int | None, order: int = 0
    ) -> dict[str, Path]:
        """The folder of every probe by its fingerprint, in the design's order."""
        stop = stop or self.settings.num_steps
        probes = [self._planned(n, p, dict(design.row(p)), base, stop, order) for n, p in enumerate(design.probes)]
        if self.elsewhere is not None:
            whole = {probe.step: self._is_whole(probe) for probe in probes}
            tasks = [probe.handed_out(self.elsewhere.save_every) for probe in probes]
            self.elsewhere.do(self.store, tasks, self.runtime.progress, lambda task: whole[task.name]())
        batches = self._batches
        batches.forget(but=probes)
        if self.elsewhere is None:
            self._told(batches.train(probes, self.settings.at_once, self.runtime))
        folders = {}
        for probe in probes:
            result, task, key = self._done(probe), probe.task, fingerprint(probe.inputs)
            if stop == self.settings.num_steps:
                drop_checkpoints(task.parts)
            if key not in self._booked:  # the same probes may be asked for again, with other points
                self._booked.add(key)
                self._book(task.probe, result, self._earlier(task.probe, probe.whole, stop))
            folders[key] = task.out
        batches.forget()
        return folders

    def _told(self, why: str | None) -> None:
        """Say once why probes are not trained as batches."""
        if why is not None and why not in self._booked:
            self._booked.add(why)
            self.runtime.progress.note(why)

    @property
    def _batches(self) -> Batches:
        return Batches(self.store, lambda probe: self._is_whole(probe)())

    def _is_whole(self, probe: PlannedProbe) -> Callable[[], bool]:
        return partial(kind_of(self.settings).is_whole, probe.task.out)

    def _done(self, probe: PlannedProbe) -> dict[str, Any]:
        """The record of a probe, trained or found."""
        with self.store.recording(probe.step, probe.inputs, intact=self._is_whole(probe)) as record:
            if record.missing and (found := self._batches.result(probe)) is not None:
                record.result = found
            elif record.missing:
                started = time.perf_counter()
                trained = train_probe(probe.task, self.runtime)
                record.result = {**trained.json(), "seconds": time.perf_counter() - started}
        return dict(record.result)

    def _evaluated(self, sweep: Sweep, base: Mapping[str, Any]) -> ProxyLosses:
        """Losses of every point, evaluated or found; what it costs is booked."""
        seconds, found = self._swept(sweep, base)
        held_out = [h.thinned(sweep.thinning) for h in self.held_out]
        tokens = sum(h.input_ids.size for h in held_out) * (len(sweep.points) + 1)
        flops = self.evaluating(held_out, len(sweep.points))
        self.ledger.add(Entry(step=sweep.name, purpose="proxies", tokens=tokens, flops=flops, seconds=seconds))
        return found

    def _inputs_of(self, sweep: Sweep, base: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "probes": list(sweep.probes),
            "points": [w.weights for w in sweep.points],
            "backend": self.evaluator.backend,
            **base,
            **({"thinning": sweep.thinning} if sweep.thinning > 1 else {}),
        }

    def _table(self, name: str) -> Path:
        return self.store.folder / "tables" / f"sequences-{name}.npz"

    def _losses(self, name: str) -> ProxyLosses | None:
        return ProxyLosses.load(self._table(name), tuple(h.name for h in self.held_out))

    def _swept(self, sweep: Sweep, base: Mapping[str, Any]) -> tuple[float, ProxyLosses]:
        """Seconds and losses of a sweep, or of a part of one, evaluated or found."""
        inputs, name = self._inputs_of(sweep, base), sweep.name
        with self.store.recording(name, inputs, intact=lambda: self._losses(name) is not None) as record:
            if record.missing and self.elsewhere is not None:
                record.result = self._in_parts(sweep, base, self.elsewhere)
            elif record.missing:
                started = time.perf_counter()
                evaluator = replace(self.evaluator, held_out=[h.thinned(sweep.thinning) for h in self.held_out])
                evaluator.evaluate(list(sweep.probes.values()), sweep.points, label=name).save(self._table(name))
                record.result = {"seconds": time.perf_counter() - started}
        found = self._losses(name)
        assert found is not None
        return float(record.result["seconds"]), found

    def _in_parts(self, sweep: Sweep, base: Mapping[str, Any], elsewhere: Elsewhere) -> dict[str, Any]:
        """Have a sweep evaluated in as many parts as there are slots, and join them: the bytes do not depend on the cut."""
        parts = sweep.parts(elsewhere.executor.slots)
        tasks = [part.handed_out(self._inputs_of(part, base)) for part in parts]
        elsewhere.do(self.store, tasks, self.runtime.progress, lambda task: self._losses(task.name) is not None)
        read = [self._losses(part.name) for part in parts]
        joined([part for part in read if part is not None]).save(self._table(sweep.name))
        records = [self.store.found(task.name, task.key) or {} for task in tasks]
        for part in parts:
            self.store.forget(part.name)
            self._table(part.name).unlink(missing_ok=True)
        return {"seconds": sum(float(record["seconds"]) for record in records)}

    def _book(self, probe: str, reached: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Charge a probe's run, less what was charged when it had been looked at before."""
        tokens = sum(reached[kind] - before.get(kind, 0) for kind in ("row_tokens", "sampled_tokens"))
        flops = reached["flops"] - before.get("flops", 0.0)
        self.ledger.add(
            Entry(step=f"probe {probe}", purpose="probes", tokens=tokens, flops=flops, seconds=reached["seconds"])
        )

    def _earlier(self, probe: str, whole: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """The last record of the same run after fewer steps, or nothing."""
        found: dict[int, dict[str, Any]] = {}
        for file in (self.store.folder / "steps").glob(f"probe-*-{probe}-at-*.json"):
            record = self.store.record(file.stem) or {}
            at = record.get("inputs", {}).get("at", steps)
            if at < steps and record.get("fingerprint") == fingerprint({**whole, "at": at}):
                found[at] = record["result"]
        return found[max(found)] if found else {}

    def _place(self, number: int, probe: str, key: str, steps: int) -> str:
        """`NN-NAME`, of an unfinished run `NN-NAME-at-STEPS`, or where the same probe was kept before under another number."""
        name = probe if steps == self.settings.num_steps else f"{probe}-at-{steps}"
        for record in sorted((self.store.folder / "steps").glob(f"probe-*-{name}.json")):
            found = self.store.record(record.stem)
            if found is not None and found.get("fingerprint") == key:
                return record.stem.removeprefix("probe-")
        return f"{number:02d}-{name}"
