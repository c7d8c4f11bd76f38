"""Training a model on a mixture that is decided as it trains: one Trainer run, resumable at any checkpoint.

At the end of every segment a mixer (`opmix.protocols.online_mixer`) is told what it asks for and says what comes next.
Its state, the segments and the sums of the present one are in every checkpoint (`mixer.json`), so a run that was killed
goes on to the same bytes. Works on text and on conversations; not with self-distillation, whose batches are no rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from opmix.compute.budget import world_size
from opmix.data import Rows
from opmix.errors import ConfigError, StoreError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.online_mixer import MixerSegment, Observation, OnlineMixer, State
from opmix.runs.files import write_json
from opmix.training.checkpoints import Checkpoints
from opmix.training.factory import StepProgress, TrainSpec, default_trainer, run_training
from opmix.training.full import train_segment
from opmix.training.objectives import CAUSAL_LM, Objective, Usage
from opmix.training.plan import TrainingPlan
from opmix.training.segments import DOMAINS, SegmentRows
from opmix.training.signals import Gradients, PassCounter, SignalSources, Sums, inputs_of, token_losses, undisturbed

MIXER_FILE = "mixer.json"


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """What is trained on, and who decides."""

    mixer: OnlineMixer
    start: tuple[State, MixerSegment]
    """From `mixer.init(bench, steps - begin_at)`; its mixture names the domains, in the stage's order."""
    rows: Mapping[str, Rows]
    """Training rows by domain."""
    steps: int
    """Optimizer steps of the whole run, which the schedule is for."""
    arguments: Mapping[str, Any]
    """The user's trainer arguments."""
    seed: int
    senses: SignalSources = field(default_factory=SignalSources)
    objective: Objective = CAUSAL_LM
    max_epochs: Mapping[str, float] | None = None
    """See `SegmentRows`."""
    document_mask: bool = False
    begin_at: int = 0
    """Steps that were trained before, on `previous`: a stage's prefix. The mixer's own steps are those after it."""
    previous: TrainingPlan | None = None
    """See `SegmentRows`."""


@dataclass(frozen=True, kw_only=True)
class OnlineResult:
    """A run that is over; the model was trained in place."""

    segments: tuple[MixerSegment, ...]
    """What it was trained on."""
    state: State
    """The mixer's last state."""
    plan: TrainingPlan
    """All rows; its tokens and shares are those of the whole run (for `opmix.training.plan.training_cost`)."""
    trainer: Trainer


def train_online(
    model: Any,
    run: OnlineRun,
    *,
    folder: Path,
    checkpoints: Checkpoints | None = None,
    usage: Usage | None = None,
    report: Callable[[int, int], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> OnlineResult:
    """Train a model in place on what a mixer decides.

    Args:
        model: With the weights of the run's start; a checkpoint's replace them.
        run: See there.
        folder: Of the Trainer and its checkpoints.
        checkpoints: None: none are written.
        usage: Passes that only serve the mixer are booked in `usage.extra`, `"tokens"` and `"flops"`.
        report: Told (steps done, steps in all).
        callbacks: Further ones.

    Raises:
        ConfigError: The run cannot tell what the mixer wants to know, or cannot be mixed as it goes.
        DataError: A domain with a share has no rows, or all together have too few.
        TrainingError: The loss is not finite.
        StoreError: A checkpoint cannot be written, or is not of this run.
    """
    check_run(run, checkpoints)
    usage = usage or Usage()
    course = OnlineRunState(model, run, usage, key=None if checkpoints is None else checkpoints.key)
    factory = partial(_trainer, course=course)
    spec = TrainSpec(
        model=model,
        dataset=course.rows.places,
        output_dir=folder,
        steps=run.steps,
        seed=run.seed,
        arguments={**course.rows.arguments, "remove_unused_columns": False},
        callbacks=[MixerCallback(course), *callbacks],
    )
    if checkpoints is not None:
        trainer = train_segment(spec, checkpoints, start=run.begin_at, make_trainer=factory, report=report, usage=usage)
    else:
        shown = [] if report is None else [StepProgress(report)]
        trainer = run_training(factory, replace(spec, callbacks=[*spec.callbacks, *shown]))
    return OnlineResult(
        segments=tuple(course.rows.segments), state=course.state, plan=course.rows.whole, trainer=trainer
    )


def check_run(run: OnlineRun, checkpoints: Checkpoints | None = None) -> None:
    """Refuse before any work.

    Raises:
        ConfigError: See `train_online`.
    """
    if run.objective.name == "sdft":
        raise ConfigError(
            "objective 'sdft': its batches are prompts, not rows, and cannot be mixed as the run goes; use 'causal_lm' "
            "or 'sft'"
        )
    heard = run.mixer.signals & {"train_loss", "excess"}
    if heard and run.arguments.get("use_liger_kernel"):
        raise ConfigError(
            f"trainer.use_liger_kernel: {sorted(heard)[0]!r} is read off the logits, which its fused loss never makes; "
            "remove it"
        )
    if run.begin_at and (checkpoints is None or checkpoints.previous_key is None):
        raise ConfigError(
            f"begin_at is {run.begin_at} without `previous_key`; expected the checkpoint of those steps to go on from"
        )
    if (processes := world_size()) > 1:
        raise ConfigError(
            f"{processes} processes: a mixture that is decided as the run goes needs one; start without a launcher"
        )
    run.senses.check(run.mixer.signals, run.start[1].mixture.names)


class OnlineRunState:
    """Where an online run stands: rows, the mixer's state, and what was heard in the present segment."""

    def __init__(self, model: Any, run: OnlineRun, usage: Usage, *, key: str | None = None) -> None:
        first = run.start[1].mixture
        self.run, self.key, self.domains, self.signals = run, key, first.names, run.mixer.signals
        self.rows = SegmentRows(
            run.rows,
            self.domains,
            first,
            steps=run.steps,
            arguments=run.arguments,
            seed=run.seed,
            objective=run.objective,
            max_epochs=run.max_epochs,
            document_mask=run.document_mask,
            begin_at=run.begin_at,
            previous=run.previous,
        )
        if run.senses.reference is not None:
            run.senses.reference.eval()  # one that was just trained still drops out, and draws
        self.state: State = {}
        self.sums = Sums.of(len(self.domains))
        length = max(rows.sequence_length for rows in self.rows.rows.values())
        self.passes = PassCounter(usage, model, length, run.senses.reference)
        self.gradients = Gradients(
            train=self.rows.rows,
            held_out=run.senses.held_out or {},
            num_rows=run.senses.gradient_rows,
            seed=run.seed,
            batch_rows=int(run.arguments.get("per_device_train_batch_size", 8)),
            document_mask=run.document_mask,
            charge=self.passes.gradient,
            served=tuple(run.senses.served or ()),
        )

    def begin(self, checkpoint: Path | None) -> None:
        """At the run's start, or as it stood at a checkpoint of its own.

        Raises:
            StoreError: What the checkpoint says of the mixer is damaged or of other domains.
        """
        kept = self._kept(checkpoint / MIXER_FILE) if checkpoint is not None else None
        if kept is None:
            self._turn(*self.run.start)
            return
        for weights, steps in kept["stints"]:
            self.rows.replay(weights, steps)
        self.state, self.sums = kept["state"], Sums.read(kept["sums"])

    def _kept(self, file: Path) -> dict[str, Any] | None:
        """None: of the run before this one."""
        if not file.is_file():
            return None
        try:
            kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if kept["key"] != self.key:
                return None
            if tuple(kept["domains"]) != self.domains:
                raise ValueError(f"its domains are {kept['domains']}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{file}: not the mixer of this run ({error}); expected its segments over {list(self.domains)}; remove "
                "the "
                "checkpoint to train from the start"
            ) from error
        return kept

    def json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "key": self.key,
            "domains": list(self.domains),
            "state": self.state,
            "stints": self.rows.given,
            "sums": self.sums.json(),
        }

    def _turn(self, state: State, segment: MixerSegment) -> None:
        self.state = json.loads(json.dumps(state))  # what a resumed run would read
        self.rows.add(segment)
        self.sums = Sums.of(len(self.domains))

    def hear(self, batch: Mapping[str, torch.Tensor], domains: torch.Tensor, logits: torch.Tensor) -> None:
        """Add up a training batch's losses; with a reference, its clipped excess too."""
        labels, device = batch["labels"], logits.device
        counts = (labels[:, 1:] != -100).sum(dim=1)
        with torch.no_grad():
            other = None
            if "excess" in self.signals:
                other = self.run.senses.reference(**inputs_of(batch, device), use_cache=False).logits
                self.passes.forward(float(labels.numel()), reference=True)
            own = list(token_losses(logits, labels))
            heard = [torch.stack([row.sum() for row in own])]
            if other is not None:
                pairs = zip(own, token_losses(other, labels), strict=True)
                heard.append(torch.stack([(mine - theirs).clamp(min=0).sum() for mine, theirs in pairs]))
        where = domains.cpu().numpy()
        np.add.at(self.sums.tokens, where, counts.double().cpu().numpy())
        np.add.at(self.sums.loss, where, heard[0].double().cpu().numpy())
        if other is not None:
            np.add.at(self.sums.excess, where, heard[1].double().cpu().numpy())

    @property
    def _weights(self) -> FloatArray | None:
        served = self.run.senses.served
        if served is None:
            return None
        weights = np.array(list(served.values()), dtype=np.float64)
        return np.asarray(weights / weights.mean())

    def decide(self, model: Any, step: int, learning_rate: float) -> None:
        """Tell the mixer and plan what it says."""
        told: dict[str, Any] = {}
        with undisturbed(model):
            if "held_out" in self.signals:
                assert self.run.senses.evaluate is not None
                told["held_out"] = np.asarray(self.run.senses.evaluate(model), dtype=np.float64)
                self.passes.forward(self.run.senses.evaluate_tokens)
            if "gradients" in self.signals:
                told["gradients"], told["gradient_norms"] = self.gradients.measure(model, len(self.rows.segments) - 1)
        if "train_loss" in self.signals:
            told["train_loss"] = self.sums.means("loss")
        if "excess" in self.signals:
            told["excess"] = self.sums.means("excess")
        mixture: Mixture = self.rows.segments[-1].mixture
        seen = Observation(
            step=step - self.run.begin_at,
            total_steps=self.run.steps - self.run.begin_at,
            mixture=mixture,
            tokens=self.rows.counted("supervised"),
            learning_rate=learning_rate,
            weights=self._weights,
            **told,
        )
        self._turn(*self.run.mixer.update(self.state, seen))


class MixerCallback(TrainerCallback):
    """Asks the mixer where a segment ends, and writes where it stands into every checkpoint."""

    def __init__(self, course: OnlineRunState) -> None:
        self.course = course

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has stepped, nothing of the next step has been looked up."""
        if state.global_step == self.course.rows.planned < state.max_steps:
            rate = kwargs["lr_scheduler"].get_last_lr()[0] / (args.learning_rate or 1.0)
            self.course.decide(kwargs["model"], state.global_step, float(rate))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the checkpoint is marked as whole, which the last callback does."""
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / MIXER_FILE, self.course.json())


class OnlineTrainer(Trainer):
    """`transformers.Trainer` that looks its rows up when a step begins, and listens to their losses."""

    course: OnlineRunState

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The rows of the next step, by the plan as it is now."""
        places, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self.course.rows.batch(place["place"]) for place in places]
        return batches, self._get_num_items_in_batch(batches, device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own; what the mixer wants to know of it is read off the logits."""
        inputs = dict(inputs)
        domains = inputs.pop(DOMAINS, None)
        if domains is None or not self.course.signals & {"train_loss", "excess"}:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with self.accelerator.autocast():
            self.course.hear(batch, domains, outputs.logits.detach())
        return (loss, outputs) if return_outputs else loss


def _trainer(spec: TrainSpec, *, course: OnlineRunState) -> Trainer:
    trainer = default_trainer(spec, OnlineTrainer)
    assert isinstance(trainer, OnlineTrainer)
    trainer.course = course
    course.begin(spec.resume_from)
    return trainer
