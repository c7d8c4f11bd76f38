"""Training the full model on a mixture, for a budget of tokens fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opmix.data import Rows
from opmix.mixing.mixture import Mixture
from opmix.models import model_shape
from opmix.progress import Progress
from opmix.training.factory import StepProgress, TrainerFactory, TrainSpec, run_training
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
