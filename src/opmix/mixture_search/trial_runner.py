"""Trial models trained, averaged and watched for a method; each run is a step of the run folder, charged to the method."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from opmix.compute.flops import ModelShape
from opmix.compute.ledger import Entry
from opmix.compute.schedule import with_schedule
from opmix.errors import ConfigError
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixture_search.context import SearchContext
from opmix.models.from_scratch import new_model
from opmix.models.layers import model_fingerprint, model_shape
from opmix.probes.evaluation import evaluate
from opmix.protocols.mixing_method import DecisionProblem, Simulation
from opmix.protocols.online_mixer import SERVING, AveragedTrial, MixerSegment, OnlineMixer
from opmix.protocols.trials import TrialModel, Trials
from opmix.runs.store import fingerprint
from opmix.target import served_sets
from opmix.training.factory import quiet, run_training
from opmix.training.full import planned_run
from opmix.training.objectives import Usage
from opmix.training.online import OnlineRun, train_online
from opmix.training.plan import plan_training, steps_for, supervised_per_step, training_cost
from opmix.training.signals import SignalSources

TRIALS = "trials"
"""What trials are booked as."""


@dataclass(frozen=True)
class TrialRunner:
    """Trains, averages and watches models for the method that decides one segment."""

    context: SearchContext
    tokenizer: Any
    schedule: Mapping[str, Any] | None
    """Of the stage, in shares of its steps; trials have the same shape."""
    architecture: Mapping[str, Any] | None
    """Of the stage's model; None: told from the model."""

    @property
    def problem(self) -> DecisionProblem:
        """See `MethodContext`."""
        return self.context.problem

    @property
    def simulate(self) -> Callable[..., Simulation]:
        """See `MethodContext`."""
        return self.context.simulate

    @property
    def token_losses(self) -> Callable[..., Mapping[str, FloatArray]]:
        """See `MethodContext`."""
        return self.context.token_losses

    @property
    def solve_settings(self) -> Callable[..., SolveSettings]:
        """See `MethodContext`."""
        return self.context.solve_settings

    @property
    def constraints(self) -> Callable[[Mapping[str, float]], Constraints]:
        """See `MethodContext`."""
        return self.context.constraints

    @property
    def decision(self) -> Callable[[], DecisionSettings]:
        """See `MethodContext`."""
        return self.context.decision

    @property
    def tokens_per_step(self) -> float:
        """See `Bench`."""
        return supervised_per_step(self.context.prepared.train, self.context.config.trainer)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Evaluation sets, in the order of the stage's domains."""
        return tuple(h.name for h in self.context.session.held_out)

    def train(self, mixtures: Sequence[Mixture], proxy: TrialModel, *, label: str) -> Trials:
        """See `Bench`."""
        runs = [self._run(m, proxy, label, i, keep=False) for i, m in enumerate(mixtures)]
        return self._trials(mixtures, runs, proxy)

    def average(self, mixtures: Sequence[Mixture], weights: FloatArray, proxy: TrialModel, *, label: str) -> Trials:
        """See `Bench`."""
        weights = np.asarray(weights, dtype=np.float64)
        shares = np.array([m.on(self.context.names).weights for m in mixtures])
        inputs = {**self._inputs(proxy), "mixtures": shares, "weights": weights}

        def work() -> dict[str, Any]:
            for i, mixture in enumerate(mixtures):
                self._run(mixture, proxy, label, i, keep=True, book=False)
            started = time.perf_counter()
            model, found = self._start(proxy), []
            states = [load_file(self._weights(label, i)) for i in range(len(mixtures))]
            with self.context.progress.task(f"{label}: averages", len(weights)) as advance:
                for n, row in enumerate(weights):
                    load_average(model, states, row)
                    found.append(self._evaluated(model))
                    advance(n + 1, len(weights))
            shutil.rmtree(self.context.store.folder / TRIALS / label, ignore_errors=True)
            return {"evaluations": found, "seconds": time.perf_counter() - started, "shape": vars(model_shape(model))}

        result, _ = self.context.store.step(f"averages-{label}", inputs, work)
        for i, mixture in enumerate(mixtures):  # booked here, found or not; their weights are gone by now
            self._run(mixture, proxy, label, i, keep=True, over=True)
        self._book_evaluations(f"{label}: averages", len(weights), result["shape"], result["seconds"])
        averaged = [Mixture(self.context.names, row @ shares) for row in weights]
        return self._trials(averaged, result["evaluations"], proxy)

    def watch(
        self, mixer: OnlineMixer, proxy: TrialModel, *, label: str, reference: Mixture | None = None
    ) -> AveragedTrial:
        """See `Bench`."""
        steps = steps_for(proxy.tokens, self.context.prepared.train, self.context.config.trainer)
        start = mixer.init(self, steps)
        inputs = {
            **self._inputs(proxy),
            "mixer": [type(mixer).__name__, asdict(cast("Any", mixer))],
            "start": [start[0], dict(start[1].mixture)],
            "reference": None if reference is None else dict(reference),
        }
        served = served_sets(self.context.config.targets, self.context.config.solve.weights, self.context.names)
        inputs |= {"served": served} if served and mixer.signals & SERVING else {}

        def work() -> dict[str, Any]:
            started, amounts, other = time.perf_counter(), [], None
            if reference is not None:
                other = self._start(proxy)
                amounts.append(self._trained(other, reference, proxy, f"{label}: reference"))
            model, usage = self._start(proxy), Usage()
            with self.context.progress.task(label, steps) as advance:
                run = OnlineRun(
                    mixer=mixer,
                    start=start,
                    rows={n: self.context.prepared.train[n] for n in self.context.names},
                    steps=steps,
                    arguments=quiet(with_schedule(self.context.config.trainer, steps, self.schedule)),
                    seed=self.context.config.seed,
                    senses=self.senses(other),
                    objective=self.context.prepared.objective,
                    document_mask=self.context.config.document_mask,
                )
                result = train_online(
                    model, run, folder=self.context.store.folder / TRIALS / "trainer", usage=usage, report=advance
                )
            shape, length = model_shape(model), self.context.config.sequence_length
            spent = training_cost(result.plan, usage, self.context.prepared.objective, shape, length).cost()
            amounts.append({"tokens": float(spent.total("tokens")), "flops": spent.total("flops")})
            return {
                "stints": segments_json(result.segments),
                "state": result.state,
                **self._evaluated(model),
                "tokens": sum(a["tokens"] for a in amounts),
                "flops": sum(a["flops"] for a in amounts),
                "shape": vars(model_shape(model)),
                "seconds": time.perf_counter() - started,
            }

        result, _ = self.context.store.step(f"watched-{label}", inputs, work)
        self.context.ledger.add(
            Entry(step=label, purpose=TRIALS, tokens=result["tokens"], flops=result["flops"], seconds=result["seconds"])
        )
        self._book_evaluations(label, 1, result["shape"], 0.0)
        return AveragedTrial(
            segments=segments_of(result["stints"]), state=result["state"], losses=np.array(result["losses"])
        )

    def senses(self, reference: Any = None) -> SignalSources:
        """What a run tells its mixer, from the valid split of its domains, or of what the search is for."""
        config, names = self.context.config, self.context.names
        served = served_sets(config.targets, config.solve.weights, names)
        held = [h for h in self.context.session.held_out if h.name in (served or names)]
        return SignalSources(
            evaluate=lambda model: evaluate(
                model, held, batch_tokens=self.context.session.evaluator.batch_tokens
            ).losses[0],
            evaluate_tokens=float(sum(h.input_ids.size for h in held)),
            held_out=self.context.prepared.evaluated("valid"),
            served=served,
            reference=reference,
        )

    # -- one run -----------------------------------------------------------------------------------------------

    def _run(
        self,
        mixture: Mixture,
        proxy: TrialModel,
        label: str,
        number: int,
        *,
        keep: bool,
        over: bool = False,
        book: bool = True,
    ) -> dict[str, Any]:
        """Train one proxy model; its losses on every evaluation set, with standard errors."""
        mixture = mixture.on(self.context.names)
        inputs = {**self._inputs(proxy), "mixture": dict(mixture), "kept": keep}

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            model = self._start(proxy)
            amounts = self._trained(model, mixture, proxy, f"{label} {number + 1}")
            if keep:
                _save_weights(model, self._weights(label, number))
            return {
                **self._evaluated(model),
                **amounts,
                "shape": vars(model_shape(model)),
                "seconds": time.perf_counter() - started,
            }

        there = self._weights(label, number).exists
        result, _ = self.context.store.step(
            f"trial-{label}-{number:03d}", inputs, work, intact=there if keep and not over else lambda: True
        )
        if not book:
            return result
        self.context.ledger.add(
            Entry(
                step=f"{label} {number}",
                purpose=TRIALS,
                tokens=result["tokens"],
                flops=result["flops"],
                seconds=result["seconds"],
            )
        )
        self._book_evaluations(f"{label} {number}", 1, result["shape"], 0.0)
        return result

    def _trained(self, model: Any, mixture: Mixture, proxy: TrialModel, name: str) -> dict[str, Any]:
        """Train in place; the tokens and FLOPs it took."""
        train, objective, usage = self.context.prepared.train, self.context.prepared.objective, Usage()
        steps = steps_for(proxy.tokens, train, self.context.config.trainer)
        plan = plan_training(
            train,
            mixture,
            steps=steps,
            arguments=quiet(with_schedule(self.context.config.trainer, steps, self.schedule)),
            seed=self.context.config.seed,
            objective=objective,
            document_mask=self.context.config.document_mask,
        )
        shape = model_shape(model)
        with self.context.progress.task(name, steps) as advance:
            spec = planned_run(
                model,
                plan,
                folder=self.context.store.folder / TRIALS / "trainer",
                seed=self.context.config.seed,
                report=advance,
            )
            run_training(objective.trainer(self.context.make_trainer, usage, shape), spec)
        spent = training_cost(plan, usage, objective, shape, self.context.config.sequence_length).cost()
        return {"tokens": spent.total("tokens"), "flops": spent.total("flops"), "steps": steps}

    def _start(self, proxy: TrialModel) -> Any:
        """A copy of the model as it is now, or a new one; on the model's device."""
        current = self.context.session.runtime.model
        if proxy.start == "current":
            if proxy.architecture:
                raise ConfigError(
                    "architecture: cannot be changed for a proxy that starts from the current model; use start: scratch"
                )
            return copy.deepcopy(current)
        architecture = self.architecture
        if architecture is None:
            told = current.config.to_diff_dict()
            architecture = {
                k: v
                for k, v in told.items()
                if k not in ("architectures", "dtype", "transformers_version", "vocab_size")
            }
            architecture["model_type"] = current.config.model_type
        made = new_model({**architecture, **proxy.architecture}, self.tokenizer, self.context.config.seed)
        return made.to(next(current.parameters()).device)

    def _inputs(self, proxy: TrialModel) -> dict[str, Any]:
        """What every run of a proxy model depends on."""
        start = model_fingerprint(self.context.session.runtime.model) if proxy.start == "current" else self.architecture
        return {
            "start": start,
            "proxy": {"tokens": proxy.tokens, "start": proxy.start, "architecture": dict(proxy.architecture)},
            "data": self.context.session.data_fingerprint,
            "trainer": self.context.config.trainer,
            "schedule": self.schedule,
            "seed": self.context.config.seed,
            "document_mask": self.context.config.document_mask,
            "objective": [self.context.prepared.objective.name, self.context.prepared.objective.settings()],
        }

    def _weights(self, label: str, number: int) -> Path:
        return self.context.store.folder / TRIALS / label / f"{number:03d}.safetensors"

    # -- evaluating --------------------------------------------------------------------------------------------

    def _evaluated(self, model: Any) -> dict[str, Any]:
        found = evaluate(model, self.context.session.held_out, batch_tokens=self.context.session.evaluator.batch_tokens)
        return {"losses": found.losses[0].tolist(), "errors": found.standard_errors[0].tolist()}

    def _book_evaluations(self, step: str, num: int, shape: Mapping[str, int], seconds: float) -> None:
        tokens = num * sum(h.input_ids.size for h in self.context.session.held_out)
        flops = tokens * ModelShape(**shape).forward(self.context.config.sequence_length)
        self.context.ledger.add(
            Entry(step=f"{step}: losses", purpose="proxies", tokens=tokens, flops=flops, seconds=seconds)
        )

    def _baseline(self, proxy: TrialModel) -> FloatArray:
        def work() -> dict[str, Any]:
            model = self._start(proxy)
            return {**self._evaluated(model), "shape": vars(model_shape(model))}

        inputs = self._inputs(proxy)
        result, _ = self.context.store.step(f"trial-start-{fingerprint(inputs)[:8]}", inputs, work)
        self._book_evaluations("start", 1, result["shape"], 0.0)
        return np.array(result["losses"])

    def _trials(self, mixtures: Sequence[Mixture], runs: Sequence[Mapping[str, Any]], proxy: TrialModel) -> Trials:
        return Trials(
            metrics=self.metrics,
            mixtures=tuple(m.on(self.context.names) for m in mixtures),
            losses=np.array([run["losses"] for run in runs]),
            standard_errors=np.array([run["errors"] for run in runs]),
            baseline=self._baseline(proxy),
        )


def segments_json(segments: Sequence[MixerSegment]) -> list[dict[str, Any]]:
    """For a record."""
    return [{"steps": s.steps, "mixture": dict(s.mixture)} for s in segments]


def segments_of(kept: Sequence[Mapping[str, Any]]) -> tuple[MixerSegment, ...]:
    """What a record holds."""
    return tuple(MixerSegment(Mixture.of(s["mixture"]), int(s["steps"])) for s in kept)


def load_average(model: Any, states: Sequence[Mapping[str, torch.Tensor]], weights: FloatArray) -> None:
    """Put `sum_k weights[k] states[k]` into a model, added up in float32 whatever the weights are kept in.

    Args:
        model: Of the states' architecture.
        states: Of each model, by parameter.
        weights: One a state.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            total = sum(
                float(w) * s[name].to(parameter.device, torch.float32) for w, s in zip(weights, states, strict=True)
            )
            parameter.copy_(total)


def _save_weights(model: Any, file: Path) -> None:
    """Every parameter once (tied ones share a name), whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, temporary)
    temporary.replace(file)
