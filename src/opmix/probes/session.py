"""The work of one search: train probes on the resident model, keep them, simulate, evaluate; each step once."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from opmix.compute.flops import ModelShape
from opmix.compute.ledger import Entry, Ledger
from opmix.data import Rows
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.models import lora_targets, model_fingerprint
from opmix.probes.borrowing import borrowed
from opmix.probes.evaluation import Evaluation, HeldOut, evaluate, evaluate_proxies
from opmix.probes.interpolation import Backend, make_proxies
from opmix.probes.parts import saving_only, until
from opmix.probes.peft_state import take_off_adapters
from opmix.progress import Progress
from opmix.protocols.mixing_method import FULL, Fidelity, Simulation
from opmix.runs.store import RunStore, fingerprint
from opmix.training.checkpoints import drop_checkpoints
from opmix.training.factory import StepProgress, TrainerFactory, TrainSpec, quiet, run_training
from opmix.training.matched import TrainingTotals, first_steps, plan_training, supervised_per_step, training_cost
from opmix.training.objectives import CAUSAL_LM, Objective, Usage

_SCHEDULE = {"warmup_ratio", "lr_scheduler_kwargs"}


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How every probe of a search is trained."""

    steps: int
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    learning_rate_multiplier: float = 2.0

    def lora(self, model: PreTrainedModel) -> LoraConfig:
        """The adapter's configuration for this architecture."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=list(self.target_modules) if self.target_modules else lora_targets(model),
            modules_to_save=list(self.modules_to_save) or None,
            task_type="CAUSAL_LM",
        )

    def arguments(self, trainer: Mapping[str, Any]) -> dict[str, Any]:
        """The full run's trainer arguments, with a constant, higher rate and no warm-up (method.md section 3).

        Trackers, evaluations and checkpoints are the full run's: a probe is none of their business.
        """
        kept = {k: v for k, v in quiet(trainer).items() if k not in _SCHEDULE}
        rate = float(trainer.get("learning_rate", 5e-5)) * self.learning_rate_multiplier
        return {**kept, "learning_rate": rate, "lr_scheduler_type": "constant", "warmup_steps": 0}


@dataclass
class ProbeSession:
    """Probes and proxies on one resident model, resumable through a run folder.

    The model is the caller's: when `simulate` returns, its weights, training mode and `requires_grad` flags are what they were.
    """

    model: PreTrainedModel
    shape: ModelShape
    train: Mapping[str, Rows]
    held_out: Sequence[HeldOut]
    settings: ProbeSettings
    trainer: Mapping[str, Any]
    make_trainer: TrainerFactory | None
    store: RunStore
    data_fingerprint: str
    ledger: Ledger
    progress: Progress
    seed: int = 0
    backend: Backend = "auto"
    batch_tokens: int = 8192
    document_mask: bool = False
    objective: Objective = CAUSAL_LM
    _wrapped: PeftModel | None = field(default=None, init=False, repr=False)
    _adapter_parameters: int = field(default=0, init=False, repr=False)
    _booked: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def sequence_length(self) -> int:
        """Tokens of a training sequence."""
        return next(iter(self.train.values())).sequence_length

    @property
    def probe_tokens(self) -> float:
        """Supervised tokens that each probe is trained on: the same for all."""
        return self.settings.steps * supervised_per_step(self.train, self.trainer)

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
        with self.probed(design, fidelity.steps) as (wrapped, keys):
            evaluation, baseline, gram = self._sweep(wrapped, keys, points, self._base, label, fidelity.thinning)
        return Simulation(
            metrics=evaluation.names,
            losses=evaluation.losses,
            standard_errors=evaluation.standard_errors,
            nll=evaluation.nll,
            tokens=evaluation.tokens,
            baseline=baseline,
            gram=gram,
            fidelity=fidelity,
            training_flops=self.ledger.total("flops", ["probes"]) - before[0],
            evaluation_flops=self.ledger.total("flops", ["proxies"]) - before[1],
        )

    @property
    def _base(self) -> dict[str, Any]:
        """What every step depends on."""
        return {"model": model_fingerprint(self.model), "data": self.data_fingerprint, "seed": self.seed}

    @contextmanager
    def probed(self, design: ProbeDesign, steps: int | None = None) -> Iterator[tuple[PeftModel, list[str]]]:
        """The model carrying the design's probes as `probe_0`, ...; missing ones are trained. With each probe's fingerprint.

        Args:
            design: The probes.
            steps: Optimizer steps after which they are taken; None: at their end.

        Raises:
            TrainingError: A probe diverged.
        """
        with borrowed(self.model):
            try:
                yield self._train_probes(design, self._base, steps or self.settings.steps)
            finally:
                if self._wrapped is not None:
                    take_off_adapters(self._wrapped)
                    self._wrapped = None

    def evaluating(self, held_out: Sequence[HeldOut], num_points: int) -> float:
        """FLOPs of a sweep: the current model and every point once."""
        each = sum(h.input_ids.size * self.shape.forward(h.input_ids.shape[1]) for h in held_out)
        return each * (num_points + 1)

    def _train_probes(self, design: ProbeDesign, base: Mapping[str, Any], steps: int) -> tuple[PeftModel, list[str]]:
        keys = []
        arguments = self.settings.arguments(self.trainer)
        for number, probe in enumerate(design.probes):
            adapter = f"probe_{number}"
            # Every adapter starts from the same factors: averaging then interpolates paths with a common start.
            torch.manual_seed(self.seed)
            wrapped = self._wrapped = self._add(adapter)
            self._adapter_parameters = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
            whole = {**base, "mixture": dict(design.row(probe)), "settings": vars(self.settings), "trainer": arguments,
                     "document_mask": self.document_mask, "objective": [self.objective.name, self.objective.settings()]}  # fmt: skip
            inputs = whole if steps == self.settings.steps else {**whole, "at": steps}
            keys.append(fingerprint(inputs))
            place = self._place(number, probe, keys[-1], steps)
            folder, parts = (
                self.store.folder / "probes" / p for p in (place, f"{place.removesuffix(f'-at-{steps}')}-parts")
            )

            def work(
                probe: str = probe, adapter: str = adapter, folder: Path = folder, parts: Path = parts,
                model: PeftModel = wrapped, key: str = fingerprint([whole, adapter]),
            ) -> dict[str, Any]:  # fmt: skip
                started = time.perf_counter()
                with saving_only(model, adapter):
                    trained = self._train_one(model, probe, design.row(probe), arguments, parts, steps, key)
                _save_adapter(model, adapter, folder)
                return {**trained.json(), "seconds": time.perf_counter() - started}

            result, found = self.store.step(
                f"probe-{place}",
                inputs,
                work,
                intact=(folder / "adapter_model.safetensors").exists,
            )
            if found:
                set_peft_model_state_dict(
                    wrapped, load_file(folder / "adapter_model.safetensors"), adapter_name=adapter
                )
            if steps == self.settings.steps:
                drop_checkpoints(parts)
            if keys[-1] not in self._booked:  # the same probes may be asked for again, with other points
                self._booked.add(keys[-1])
                self._book(probe, result, self._earlier(probe, whole, steps))
        return wrapped, keys

    def _book(self, probe: str, reached: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """What a probe's run came to, less what was booked when it had been looked at before."""
        tokens, flops = (
            reached["row_tokens"] + reached["sampled_tokens"] - before.get("row_tokens", 0) - before.get("sampled_tokens", 0),
            reached["flops"] - before.get("flops", 0.0),
        )  # fmt: skip
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

    def _add(self, adapter: str) -> PeftModel:
        wrapped = self._wrapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft remarks on tied embeddings, which are not adapted here
            if wrapped is None:
                return get_peft_model(self.model, self.settings.lora(self.model), adapter_name=adapter)
            wrapped.add_adapter(adapter, self.settings.lora(self.model))
        wrapped.set_adapter(adapter)
        return wrapped

    def _train_one(
        self,
        model: PeftModel,
        probe: str,
        mixture: Mixture,
        arguments: Mapping[str, Any],
        parts: Path,
        stop: int,
        key: str,
    ) -> TrainingTotals:
        steps, usage = self.settings.steps, Usage()
        plan = plan_training(
            self.train, mixture, steps=steps, arguments=arguments, seed=self.seed, objective=self.objective,
            document_mask=self.document_mask,
        )  # fmt: skip
        with self.progress.task(f"probe {probe}", stop) as advance:
            spec = TrainSpec(
                model=model, dataset=plan.dataset, output_dir=parts, steps=steps, seed=self.seed, arguments=plan.arguments,
                callbacks=[StepProgress(lambda done, _: advance(done, stop))],
            )  # fmt: skip
            run_training(
                self.objective.trainer(self.make_trainer, usage, self.shape), until(spec, stop, key=key, usage=usage)
            )
        done = plan if stop == steps else first_steps(plan, self.train, stop)
        return training_cost(done, usage, self.objective, self.shape, self.sequence_length, self._adapter_parameters)

    def _sweep(
        self,
        wrapped: PeftModel,
        keys: list[str],
        points: Sequence[InterpolationWeights],
        base: Mapping[str, Any],
        label: str,
        thinning: int,
    ) -> tuple[Evaluation, FloatArray, FloatArray]:
        inputs = {"probes": keys, "points": [w.weights for w in points], "backend": self.backend, **base}
        inputs |= {"thinning": thinning} if thinning > 1 else {}
        held_out = [h.thinned(thinning) for h in self.held_out]
        file = self.store.folder / "tables" / f"sequences-{label}.npz"
        names = tuple(h.name for h in self.held_out)

        def work() -> dict[str, Any]:
            from opmix.probes.adapters import DeltaSet

            started = time.perf_counter()
            adapters = [f"probe_{i}" for i in range(len(keys))]
            proxies = make_proxies(wrapped, adapters, backend=self.backend)
            renamed = [InterpolationWeights(tuple(adapters), w.weights) for w in points]
            with proxies.at_vector(np.zeros(len(keys))) as model:
                baseline = evaluate(model, held_out, batch_tokens=self.batch_tokens)
            with self.progress.task(label, len(points)) as advance:
                swept = evaluate_proxies(proxies, renamed, held_out, batch_tokens=self.batch_tokens, progress=advance)
            _save_arrays(file, swept, baseline, DeltaSet.from_peft(wrapped, adapters).gram())
            return {"seconds": time.perf_counter() - started}

        result, _ = self.store.step(label, inputs, work, intact=file.exists)
        with np.load(file) as arrays:
            stack = [tuple(arrays[f"{kind}_{i}"] for i in range(len(names))) for kind in ("nll", "tokens", "bytes")]
            evaluation = Evaluation(names, *stack)
            baseline, gram = arrays["baseline"], arrays["gram"]
        tokens = sum(h.input_ids.size for h in held_out) * (len(points) + 1)
        flops = self.evaluating(held_out, len(points))
        self.ledger.add(Entry(step=label, purpose="proxies", tokens=tokens, flops=flops, seconds=result["seconds"]))
        return evaluation, baseline, gram


def _save_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    """An ordinary PEFT adapter, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), selected_adapters=[adapter], save_embedding_layers=False)
    inside = temporary / adapter
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside.replace(folder)
    shutil.rmtree(temporary, ignore_errors=True)


def _save_arrays(file: Path, swept: Evaluation, baseline: Evaluation, gram: FloatArray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    arrays = {"baseline": baseline.losses[0], "gram": gram}
    for kind, columns in (("nll", swept.nll), ("tokens", swept.tokens), ("bytes", swept.num_bytes)):
        arrays |= {f"{kind}_{i}": column for i, column in enumerate(columns)}
    with temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    temporary.replace(file)
