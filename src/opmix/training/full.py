"""Training the full model on a mixture, for a budget of tokens fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opmix.data import MixtureDataset, PackedSequences, plan_mixture
from opmix.mixing.mixture import Mixture
from opmix.progress import Progress
from opmix.training.factory import (
    StepProgress,
    TrainerFactory,
    TrainSpec,
    default_trainer,
    run_training,
    sequences_per_step,
)


def train_on_mixture(
    model: Any,
    train: Mapping[str, PackedSequences],
    mixture: Mixture,
    *,
    tokens: int,
    arguments: Mapping[str, Any],
    seed: int,
    output_dir: Path,
    progress: Progress,
    name: str,
    max_epochs: Mapping[str, float] | None = None,
    make_trainer: TrainerFactory = default_trainer,
) -> int:
    """Train a model in place on `mixture`; returns the tokens really seen (whole steps).

    Raises:
        DataError: A share asks for more epochs than `max_epochs` allows.
        TrainingError: The loss is not finite.
    """
    length = next(iter(train.values())).sequence_length
    per_step = sequences_per_step(arguments)
    steps = max(1, round(tokens / (per_step * length)))
    plan = plan_mixture(
        mixture, steps * per_step, {n: len(p) for n, p in train.items()}, seed=seed, max_epochs=max_epochs
    )
    dataset = MixtureDataset(train, plan)
    with progress.task(name, steps) as advance:
        spec = TrainSpec(
            model=model,
            dataset=dataset,
            output_dir=output_dir,
            steps=steps,
            seed=seed,
            arguments=arguments,
            callbacks=[StepProgress(advance)],
        )
        run_training(make_trainer, spec)
    return steps * per_step * length
