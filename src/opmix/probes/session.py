"""Probes and proxies of one search, each done once: the run folder as the memo around the tasks, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opmix.compute.ledger import Entry, Ledger
from opmix.mixing.mixture import InterpolationWeights, ProbeDesign
from opmix.models.load import model_fingerprint
from opmix.probes.evaluation import HeldOut
from opmix.probes.interpolation import Backend, Proxies
from opmix.probes.kinds import kind_of
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProbeRuntime, ProbeTask, ProxyEvaluator, ProxyLosses, probe_arguments, train_probe
from opmix.protocols.mixing_method import FULL, Fidelity, Simulation
from opmix.runs.store import RunStore, fingerprint
from opmix.training.checkpoints import drop_checkpoints
from opmix.training.plan import supervised_per_step


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
    _booked: set[str] = field(default_factory=set, init=False, repr=False)

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
        return self.settings.steps * supervised_per_step(self.runtime.rows, self.trainer)

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
        probes = self._trained(design, base, fidelity.steps)
        swept = self._evaluated(probes, points, base, label, fidelity.thinning)
        return Simulation(
            metrics=swept.points.names,
            losses=swept.points.losses,
            standard_errors=swept.points.standard_errors,
            nll=swept.points.nll,
            tokens=swept.points.tokens,
            baseline=swept.baseline,
            gram=swept.gram,
            fidelity=fidelity,
            probe_tokens=self.probe_tokens * (fidelity.steps or self.settings.steps) / self.settings.steps,
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

    def evaluating(self, held_out: Sequence[HeldOut], num_points: int) -> float:
        """FLOPs of a sweep: the current model and every point once."""
        each = sum(h.input_ids.size * self.runtime.shape.forward(h.input_ids.shape[1]) for h in held_out)
        return each * (num_points + 1)

    @property
    def _base(self) -> dict[str, Any]:
        """What every step depends on."""
        return {"model": model_fingerprint(self.runtime.model), "data": self.data_fingerprint, "seed": self.seed}

    def _trained(self, design: ProbeDesign, base: Mapping[str, Any], stop: int | None) -> dict[str, Path]:
        """The folder of every probe by its fingerprint, in the design's order."""
        stop, whole_steps = stop or self.settings.steps, self.settings.steps
        arguments, objective = probe_arguments(self.settings, self.trainer), self.runtime.objective
        folders = {}
        for number, probe in enumerate(design.probes):
            name, mixture = f"probe_{number}", dict(design.row(probe))
            whole = {
                **base,
                "mixture": mixture,
                "settings": self.settings.of_a_run(),
                "trainer": arguments,
                "document_mask": self.document_mask,
                "objective": [objective.name, objective.settings()],
            }
            inputs = whole if stop == whole_steps else {**whole, "at": stop}
            key = fingerprint(inputs)
            place = self._place(number, probe, key, stop)
            task = ProbeTask(
                probe=probe,
                mixture=mixture,
                settings=self.settings,
                trainer=arguments,
                seed=self.seed,
                stop=stop,
                out=self.store.folder / "probes" / place,
                parts=self.store.folder / "probes" / f"{place.removesuffix(f'-at-{stop}')}-parts",
                key=fingerprint([whole, name]),
                name=name,
                document_mask=self.document_mask,
            )
            result = self._done(f"probe-{place}", inputs, task)
            if stop == whole_steps:
                drop_checkpoints(task.parts)
            if key not in self._booked:  # the same probes may be asked for again, with other points
                self._booked.add(key)
                self._book(probe, result, self._earlier(probe, whole, stop))
            folders[key] = task.out
        return folders

    def _done(self, step: str, inputs: Mapping[str, Any], task: ProbeTask) -> dict[str, Any]:
        """The record of a probe, trained or found."""

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            trained = train_probe(task, self.runtime)
            return {**trained.json(), "seconds": time.perf_counter() - started}

        result, _ = self.store.step(step, inputs, work, intact=lambda: kind_of(self.settings).is_whole(task.out))
        return result

    def _evaluated(
        self,
        probes: Mapping[str, Path],
        points: Sequence[InterpolationWeights],
        base: Mapping[str, Any],
        label: str,
        thinning: int,
    ) -> ProxyLosses:
        """Losses of every point, evaluated or found."""
        inputs = {
            "probes": list(probes),
            "points": [w.weights for w in points],
            "backend": self.evaluator.backend,
            **base,
            **({"thinning": thinning} if thinning > 1 else {}),
        }
        held_out = [h.thinned(thinning) for h in self.held_out]
        file, names = self.store.folder / "tables" / f"sequences-{label}.npz", tuple(h.name for h in held_out)

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            evaluator = replace(self.evaluator, held_out=held_out)
            evaluator.evaluate(list(probes.values()), points, label=label).save(file)
            return {"seconds": time.perf_counter() - started}

        result, _ = self.store.step(label, inputs, work, intact=lambda: ProxyLosses.load(file, names) is not None)
        tokens = sum(h.input_ids.size for h in held_out) * (len(points) + 1)
        flops = self.evaluating(held_out, len(points))
        self.ledger.add(Entry(step=label, purpose="proxies", tokens=tokens, flops=flops, seconds=result["seconds"]))
        found = ProxyLosses.load(file, names)
        assert found is not None
        return found

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
        name = probe if steps == self.settings.steps else f"{probe}-at-{steps}"
        for record in sorted((self.store.folder / "steps").glob(f"probe-*-{name}.json")):
            found = self.store.record(record.stem)
            if found is not None and found.get("fingerprint") == key:
                return record.stem.removeprefix("probe-")
        return f"{number:02d}-{name}"
