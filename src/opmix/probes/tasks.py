"""The two expensive works of a search as pure tasks that know no run folder: train one probe, evaluate interpolations of kept ones.

A task is a value; what it needs of the machine (the resident model, the data, the trainer) comes beside it as a runtime, which another
process builds for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from opmix.compute.flops import ModelShape
from opmix.data import Rows
from opmix.errors import TrainingError
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture
from opmix.models.sharded import is_sharded
from opmix.probes.evaluation import Evaluation, HeldOut, evaluate, evaluate_proxies
from opmix.probes.interpolation import Backend
from opmix.probes.kinds import kind_of, names_of
from opmix.probes.parts import train_adapters_until, until
from opmix.probes.settings import ProbeSettings
from opmix.progress import Progress
from opmix.runs.files import DAMAGED_ARRAY, regular
from opmix.runs.ranks import ranks_here
from opmix.runs.trace import span
from opmix.training.factory import StepProgress, TrainerFactory, TrainSpec, quiet, run_training
from opmix.training.objectives import CAUSAL_LM, Objective, Usage
from opmix.training.plan import TrainingTotals, first_steps, plan_training, training_cost

_SCHEDULE = {"warmup_ratio", "lr_scheduler_kwargs"}
_AGREE = 1e-3
"""Nats that the current model's losses may differ by between parts of a sweep: decisions hang on as much."""


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One probe to train, from the current model to a folder."""

    probe: str
    """Its name, as it is shown."""
    mixture: Mapping[str, float]
    settings: ProbeSettings
    trainer: Mapping[str, Any]
    """Arguments of `probe_arguments`."""
    seed: int
    stop: int
    """Optimizer steps after which it is kept; fewer than `settings.num_steps`: it is looked at, and can go on from there."""
    out: Path
    """Where it is kept."""
    parts: Path
    """Checkpoints to go on from."""
    key: str
    """Of the whole run; checkpoints of another are not used."""
    name: str = "probe_0"
    """Under which the model carries it while it trains."""
    document_mask: bool = False
    save_every: int | None = None
    """Steps between further checkpoints, so that another process can go on; None: there are none."""


@dataclass(frozen=True, kw_only=True)
class ProbeRuntime:
    """What tasks are done with."""

    model: PreTrainedModel
    """The current model; it is given back as it was."""
    shape: ModelShape
    rows: Mapping[str, Rows]
    """Training rows by domain."""
    progress: Progress
    objective: Objective = CAUSAL_LM
    make_trainer: TrainerFactory | None = None


def probe_arguments(settings: ProbeSettings, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the full run's trainer arguments with a constant, higher rate and no warm-up (method.md section 3).

    Trackers, evaluations and checkpoints are the full run's: a probe is none of their business.
    """
    kept = {k: v for k, v in quiet(trainer).items() if k not in _SCHEDULE}
    rate = float(trainer.get("learning_rate", 5e-5)) * settings.rate
    return {**kept, "learning_rate": rate, "lr_scheduler_type": "constant", "warmup_steps": 0}


def train_probe(task: ProbeTask, runtime: ProbeRuntime) -> TrainingTotals:
    """Train a probe to `task.stop` and keep it in `task.out`; return tokens and FLOPs from its first step on.

    Raises:
        TrainingError: It diverged.
        StoreError: A checkpoint cannot be written.
    """
    usage, objective, steps = Usage(), runtime.objective, task.settings.num_steps
    plan = plan_training(
        runtime.rows,
        Mixture.of(task.mixture),
        steps=steps,
        arguments=task.trainer,
        seed=task.seed,
        objective=objective,
        document_mask=task.document_mask,
    )
    factory = objective.trainer(runtime.make_trainer, usage, runtime.shape)
    with torch.random.fork_rng(devices=[]), runtime.progress.task(f"probe {task.probe}", task.stop) as advance:
        torch.manual_seed(task.seed)
        with kind_of(task.settings).attached(runtime.model, task.settings, task.name) as attached:
            spec = TrainSpec(
                model=attached.model,
                dataset=plan.dataset,
                output_dir=task.parts,
                steps=steps,
                seed=task.seed,
                arguments=plan.arguments,
                callbacks=[StepProgress(lambda done, _: advance(done, task.stop))],
            )
            if is_sharded(attached.model):
                train_adapters_until(factory, spec, task.stop, key=task.key, usage=usage, save_every=task.save_every)
            else:
                run_training(factory, until(spec, task.stop, key=task.key, usage=usage, save_every=task.save_every))
            ranks = ranks_here()
            with ranks.agreed():
                if ranks.first:
                    with span("keep a probe", "saving"):
                        attached.save(task.out)
    done = plan if task.stop == steps else first_steps(plan, runtime.rows, task.stop)
    length = next(iter(runtime.rows.values())).sequence_length
    return training_cost(done, usage, objective, runtime.shape, length, attached.adapter_parameters)


@dataclass(frozen=True, kw_only=True)
class ProxyLosses:
    """Losses of M interpolations and of the current model on the same sequences."""

    points: Evaluation
    baseline: FloatArray  # (E,) nats per token
    gram: FloatArray  # (P, P) inner products of the probes' deltas

    def save(self, file: Path) -> None:
        """Write an `.npz` file, whole or not at all. Of several ranks the first one writes."""
        if not ranks_here().first:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        arrays: dict[str, Any] = {"baseline": self.baseline, "gram": self.gram}
        columns = {"nll": self.points.nll, "tokens": self.points.tokens, "bytes": self.points.num_bytes}
        for kind, of_sets in columns.items():
            arrays |= {f"{kind}_{i}": column for i, column in enumerate(of_sets)}
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path, names: tuple[str, ...]) -> ProxyLosses | None:
        """Read what `save` wrote; None: it is not there, or damaged."""
        try:
            with regular(file).open("rb") as stream, np.load(stream) as arrays:
                nll, tokens, num_bytes = (
                    tuple(arrays[f"{kind}_{i}"] for i in range(len(names))) for kind in ("nll", "tokens", "bytes")
                )
                return cls(
                    points=Evaluation(names, nll, tokens, num_bytes), baseline=arrays["baseline"], gram=arrays["gram"]
                )
        except DAMAGED_ARRAY:
            return None


def joined(parts: Sequence[ProxyLosses]) -> ProxyLosses:
    """Parts of one sweep, in order of their points.

    Raises:
        TrainingError: The current model's losses differ between them.
    """
    first = parts[0]
    for part in parts[1:]:
        if not np.allclose(part.baseline, first.baseline, rtol=0, atol=_AGREE):
            raise TrainingError(
                f"the current model's losses are {first.baseline} in one part of a sweep and {part.baseline} in "
                f"another; expected the same within {_AGREE:g} nats: do all parts on machines of one kind, or without "
                "`executor`"
            )
    nll = tuple(np.concatenate(of_set) for of_set in zip(*(part.points.nll for part in parts), strict=True))
    return replace(first, points=replace(first.points, nll=nll))


@dataclass(frozen=True, kw_only=True)
class ProxyEvaluator:
    """Evaluates interpolations of kept probes on held-out sequences."""

    runtime: ProbeRuntime
    settings: ProbeSettings
    held_out: Sequence[HeldOut]
    backend: Backend = "auto"
    batch_tokens: int = 8192

    def evaluate(
        self, probes: Sequence[Path], points: Sequence[InterpolationWeights], *, label: str = "proxies"
    ) -> ProxyLosses:
        """Evaluate the current model and every point, weights (P,) over `probes` in their order.

        Raises:
            TrainingError: A loss is not finite.
        """
        names, runtime, size = names_of(len(probes)), self.runtime, self.batch_tokens
        renamed = [InterpolationWeights(names, point.weights) for point in points]
        kind = kind_of(self.settings)
        with kind.interpolated(runtime.model, self.settings, probes, self.backend) as (proxies, gram):
            with proxies.at_vector(np.zeros(len(names))) as model:
                baseline = evaluate(model, self.held_out, batch_tokens=size)
            with runtime.progress.task(label, len(points)) as advance:
                swept = evaluate_proxies(proxies, renamed, self.held_out, batch_tokens=size, progress=advance)
        return ProxyLosses(points=swept, baseline=baseline.losses[0], gram=gram)
