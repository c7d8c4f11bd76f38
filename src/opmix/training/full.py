"""Training the full model on a mixture, for a budget of tokens fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from opmix.compute.budget import asks_for_parts
from opmix.data import Rows
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.progress import Progress
from opmix.training.checkpoints import Checkpoints, CompleteCheckpoints, StopAt, latest_checkpoint, restore_usage
from opmix.training.factory import StepProgress, TrainerFactory, TrainSpec, default_trainer, run_training
from opmix.training.objectives import CAUSAL_LM, Objective, Usage
from opmix.training.plan import TrainingPlan, plan_training, steps_for
from opmix.training.sharding import WholeModel, check_same_kind


def train_on_mixture(
    model: Any,
    train: Mapping[str, Rows],
    mixture: Mixture,
    *,
    tokens: int,
    arguments: Mapping[str, Any],
    seed: int,
    output_dir: Path,
    progress: Progress,
    name: str,
    max_epochs: Mapping[str, float] | None = None,
    make_trainer: TrainerFactory | None = None,
    objective: Objective = CAUSAL_LM,
) -> int:
    """Train a model in place on `mixture`; returns the supervised tokens really seen (whole steps).

    Raises:
        DataError: A share asks for more epochs than `max_epochs` allows.
        TrainingError: The loss is not finite.
    """
    steps = steps_for(tokens, train, arguments)
    plan = plan_training(
        train, mixture, steps=steps, arguments=arguments, seed=seed, objective=objective, max_epochs=max_epochs
    )
    factory = objective.trainer(make_trainer, Usage(), model_shape(model))
    with progress.task(name, steps) as advance:
        run_training(factory, planned_run(model, plan, folder=output_dir, seed=seed, report=advance))
    return plan.supervised_tokens


def planned_run(
    model: Any, plan: TrainingPlan, *, folder: Path, seed: int, report: Callable[[int, int], None] | None = None
) -> TrainSpec:
    """Return the run that a plan describes; `report` is told (steps done, steps in all)."""
    return TrainSpec(
        model=model,
        dataset=plan.dataset,
        output_dir=folder,
        steps=plan.steps,
        seed=seed,
        arguments=plan.arguments,
        callbacks=[] if report is None else [StepProgress(report)],
    )


def train_segment(
    spec: TrainSpec,
    checkpoints: Checkpoints,
    *,
    start: int = 0,
    make_trainer: TrainerFactory = default_trainer,
    report: Callable[[int, int], None] | None = None,
    usage: Usage | None = None,
) -> Trainer:
    """Train a model in place from step `start` to `spec.stop_at`, leaving checkpoints in `spec.output_dir`.

    All segments of a run are one training run to the optimiser and the schedule: each but the first goes on from the checkpoint in
    which the one before ended, and a segment that was interrupted goes on from its own last whole checkpoint.

    Args:
        spec: The whole run, `steps` times the rows of a step; its model has the weights of the run's start.
        checkpoints: Where to go on from, and what to keep.
        start: Step at which the segment begins.
        make_trainer: The user's trainer.
        report: Told (steps done, steps of this segment).
        usage: What the trainer counts; kept with every checkpoint, so that a resumed segment counts all of it.

    Raises:
        TrainingError: The loss is not finite.
        StoreError: A checkpoint cannot be written or is not of this model.
    """
    folder, stop, usage = spec.output_dir, spec.stop_at or spec.steps, usage or Usage()
    resume = latest_checkpoint(folder, checkpoints.key)
    if resume is None and checkpoints.previous_key is not None:
        resume = latest_checkpoint(folder, checkpoints.previous_key)
    if resume is not None:
        check_same_kind(resume, spread=asks_for_parts(spec.arguments))
        restore_usage(resume, checkpoints.key, usage)
    watchers: list[TrainerCallback] = [StopAt(stop), *spec.callbacks]
    if report is not None:
        watchers.append(StepProgress(lambda done, _: report(done - start, stop - start)))
    kept = replace(
        spec,
        stop_at=stop,
        arguments=_keeping(spec, checkpoints),
        callbacks=watchers,
        last_callbacks=[WholeModel(stop), CompleteCheckpoints(checkpoints.key, usage)],
        resume_from=resume,
        held_out=checkpoints.held_out,
        optimizer_state=checkpoints.optimizer_state,
    )
    return run_training(make_trainer, kept)


def _keeping(spec: TrainSpec, checkpoints: Checkpoints) -> dict[str, Any]:
    """Trainer arguments with log entries, evaluations and checkpoints."""
    wanted = float(spec.arguments.get("logging_steps", 10))
    logging = math.ceil(wanted if wanted >= 1 else wanted * spec.steps)  # transformers takes a share of the run too
    return {
        "logging_strategy": "steps",
        "logging_steps": logging,
        **spec.arguments,
        "save_strategy": "steps",
        # A log entry averages the steps since the one before; checkpoints between two entries would cut that average.
        "save_steps": max(1, checkpoints.save_every // logging) * logging,
        "eval_strategy": "steps" if checkpoints.evaluate_every else "no",
        "eval_steps": checkpoints.evaluate_every,
    }
