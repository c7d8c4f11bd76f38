"""Training the full model on a mixture, for a budget of tokens fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from opmix.data import Rows
from opmix.mixing.mixture import Mixture
from opmix.models import model_shape
from opmix.progress import Progress
from opmix.training.checkpoints import CompleteCheckpoints, StopAt, latest_checkpoint, restore_usage
from opmix.training.factory import StepProgress, TrainerFactory, TrainSpec, default_trainer, run_training
from opmix.training.matched import plan_training, steps_for
from opmix.training.objectives import CAUSAL_LM, Objective, Usage


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
        spec = TrainSpec(
            model=model,
            dataset=plan.dataset,
            output_dir=output_dir,
            steps=steps,
            seed=seed,
            arguments=plan.arguments,
            callbacks=[StepProgress(advance)],
        )
        run_training(factory, spec)
    return plan.supervised_tokens


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of one stage between two decisions: steps `start` to `stop` of `steps`, on one mixture.

    All stretches of a stage are one training run to the optimiser and the schedule: each but the first goes on from the checkpoint
    in which the one before ended, and a stretch that was interrupted goes on from its own last whole checkpoint.
    """

    steps: int
    start: int
    stop: int
    key: str
    """Of this stretch; its checkpoints carry it."""
    previous_key: str | None = None
    """Of the stretch before, whose last checkpoint this one starts from."""
    save_every: int = 100
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations of the held-out rows; None: never."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def train_stretch(
    model: Any,
    dataset: Dataset[Any],
    stretch: Stretch,
    *,
    folder: Path,
    seed: int,
    make_trainer: TrainerFactory = default_trainer,
    held_out: Mapping[str, Dataset[Any]] | None = None,
    optimizer_state: Path | None = None,
    report: Callable[[int, int], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    usage: Usage | None = None,
) -> Trainer:
    """Train a model in place through one stretch; checkpoints go to `folder`.

    Args:
        model: With the weights of the stage's start; a checkpoint's replace them.
        dataset: Rows of the whole stage in order, `steps` times the rows of a step.
        stretch: Which part.
        folder: Of the stage's checkpoints.
        seed: Of dropout and whatever else draws.
        make_trainer: The user's trainer.
        held_out: Rows by domain to evaluate on.
        optimizer_state: `optimizer.pt` whose moments a stage's first stretch starts with.
        report: Told (steps done, steps of this stretch).
        callbacks: Further ones.
        usage: What the trainer counts; kept with every checkpoint, so that a resumed stretch counts all of it.

    Raises:
        TrainingError: The loss is not finite.
        StoreError: A checkpoint cannot be written or is not of this model.
    """
    resume = latest_checkpoint(folder, stretch.key)
    if resume is None and stretch.previous_key is not None:
        resume = latest_checkpoint(folder, stretch.previous_key)
    wanted = float(stretch.arguments.get("logging_steps", 10))
    logging = math.ceil(wanted if wanted >= 1 else wanted * stretch.steps)  # transformers takes a share of the run too
    defaults = {"logging_strategy": "steps", "logging_steps": logging}
    own = {
        # A log entry averages the steps since the one before; checkpoints between two entries would cut that average.
        "save_strategy": "steps", "save_steps": max(1, stretch.save_every // logging) * logging,
        "eval_strategy": "steps" if stretch.evaluate_every else "no", "eval_steps": stretch.evaluate_every,
    }  # fmt: skip
    usage = usage or Usage()
    if resume is not None:
        restore_usage(resume, stretch.key, usage)
    watchers: list[TrainerCallback] = [StopAt(stretch.stop), *callbacks]
    if report is not None:
        watchers.append(StepProgress(lambda done, _: report(done - stretch.start, stretch.stop - stretch.start)))
    spec = TrainSpec(
        model=model, dataset=dataset, output_dir=folder, steps=stretch.steps, stop_at=stretch.stop, seed=seed,
        arguments={**defaults, **stretch.arguments, **own}, callbacks=watchers, resume_from=resume, held_out=held_out,
        optimizer_state=optimizer_state, last_callbacks=[CompleteCheckpoints(stretch.key, usage)],
    )  # fmt: skip
    return run_training(make_trainer, spec)
