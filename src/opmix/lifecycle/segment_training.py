"""Training the full model on a plan fixed beforehand, segment after segment of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import Trainer

from opmix.data import MixtureDataset, MixturePlan
from opmix.lifecycle.measuring import last_loss, write_log
from opmix.lifecycle.records import TrainingRecord
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment
from opmix.mixing.mixture import Mixture
from opmix.progress import Advance
from opmix.training.factory import TrainerFactory
from opmix.training.full import planned_run, train_segment
from opmix.training.objectives import Usage
from opmix.training.plan import TrainingPlan, plan_training, training_cost

TrainSegment = Callable[[StageFolder, Segment, TrainingPlan, Usage, Advance], Trainer]
"""Trains the model through a segment, leaving a checkpoint of its last step."""


@dataclass(frozen=True)
class SegmentTraining:
    """Trains every segment on a mixture fixed before it: one stream of rows, however often the mixture changes."""

    at: StageFolder
    train_rows: TrainSegment

    def start(self) -> TrainingPlan:
        """See `StageTrainer`."""
        return first_plan(self.at)

    def train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[TrainingRecord, TrainingPlan]:
        """See `StageTrainer`."""
        at, stage, length = self.at, self.at.stage, segment.stop - segment.start
        planned = self._planned(mixture, length, plan)

        def work() -> TrainingRecord:
            # The Trainer wants the whole stage's rows; those after this segment are never read.
            rest = stage.steps - segment.stop
            stream = self._planned(mixture, rest, planned, limited=False) if rest else planned
            at.check_room()
            started, usage = time.perf_counter(), Usage()
            with at.runtime.progress.task(at.task("train"), length) as advance:
                trainer = self.train_rows(at, segment, stream, usage, advance)
            return training_record(at, segment, mixture, planned, trainer, usage, started)

        return at.step("train", segment.start, TrainingRecord, work, intact=lambda: at.trained(segment)), planned

    def _planned(self, mixture: Mixture, steps: int, before: TrainingPlan, *, limited: bool = True) -> TrainingPlan:
        at, stage = self.at, self.at.stage
        return plan_training(
            at.data.train,
            mixture,
            steps=steps,
            arguments=stage.trainer,
            seed=at.seed,
            objective=at.data.objective,
            max_epochs=stage.epochs_allowed if limited else None,
            document_mask=stage.settings.document_mask,
            previous=before,
        )


def train_plainly(at: StageFolder, segment: Segment, stream: TrainingPlan, usage: Usage, advance: Advance) -> Trainer:
    """Train with the user's trainer; see `TrainSegment`."""
    make = at.data.objective.trainer(at.runtime.make_trainer, usage, shape_from(at.state.shape))
    model = at.model_at(segment, at.runtime.whole_place)
    return train_kept(at, segment, model, stream, usage, advance, make)


def train_kept(
    at: StageFolder,
    segment: Segment,
    model: Any,
    stream: TrainingPlan,
    usage: Usage,
    advance: Advance,
    make_trainer: TrainerFactory,
) -> Trainer:
    """Train a model in place through a segment, with the stage's checkpoints."""
    whole = planned_run(model, stream, folder=at.checkpoints, seed=at.seed)
    return train_segment(
        replace(whole, steps=at.stage.steps, stop_at=segment.stop),
        at.checkpointing(segment),
        start=segment.start,
        make_trainer=make_trainer,
        report=advance,
        usage=usage,
    )


def first_plan(at: StageFolder, domains: Sequence[str] | None = None) -> TrainingPlan:
    """Return the stage's stream before its first row, over all domains or some, going on where earlier stages ended."""
    names, rows, state = tuple(domains or at.stage.domains), at.rows, at.state
    same = {n for n in names if state.rows.get(n) == rows[n] and at.stage.config.replay == "remaining"}
    empty = np.empty(0, dtype=np.int64)
    drawn = tuple(state.cursors.get(n, 0) if n in same else 0 for n in names)
    plan = MixturePlan(names, empty.astype(np.int16), empty, tuple(rows[n] for n in names), at.seed, drawn)
    return TrainingPlan(
        plan=plan,
        dataset=MixtureDataset(at.data.train, plan),
        arguments={},
        steps=0,
        row_tokens=0,
        supervised_tokens=0,
        shares={},
    )


def training_record(
    at: StageFolder,
    segment: Segment,
    mixture: Mixture,
    plan: TrainingPlan,
    trainer: Trainer,
    usage: Usage,
    started: float,
) -> TrainingRecord:
    """Return the record of a segment that is trained, and write the stage's `training.csv`."""
    history = trainer.state.log_history
    write_log(at.folder / "training.csv", history, at.stage.step_tokens)
    shape, length = shape_from(at.state.shape), at.stage.settings.sequence_length
    trained = training_cost(plan, usage, at.data.objective, shape, length)
    return TrainingRecord(
        mixture=dict(mixture),
        key=at.key("train", segment),
        cursors=plan.plan.cursors(),
        loss=last_loss(history),
        shares=trained.shares,
        supervised_tokens=trained.supervised_tokens,
        amounts=trained.cost(time.perf_counter() - started),
    )
