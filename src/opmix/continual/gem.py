"""Gradient Episodic Memory: no step may, to first order, raise the loss on any old domain.

Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual Learning", arXiv 1706.08840, equations 7 to 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from opmix.continual.a_gem import at_once, check_memory
from opmix.continual.base import StageContext
from opmix.continual.memory import keep, memory_gradient, recall
from opmix.continual.projection import project
from opmix.continual.stepping import NewOnly, stepping_trainer, trained_parameters
from opmix.errors import ConfigError
from opmix.training.factory import TrainSpec


@dataclass(frozen=True, kw_only=True)
class Gem(NewOnly):
    """GEM: one constraint an old domain; a backward pass for each, and as many copies of the gradient in memory.

    A task of the paper is a domain here. Like A-GEM, it projects the gradient that the optimizer is given.
    """

    memory: int = 256
    """Rows kept of each old domain. Published: 256 examples a task."""
    batch: int | None = None
    """Rows of each old domain in a step; None: as many as a step's. Published: the whole memory, which for text is too dear."""
    margin: float = 0.5
    """Added to what is taken of every old gradient where one objects, to favour backward transfer. Published: gamma = 0.5."""

    def __post_init__(self) -> None:
        check_memory(self.memory, self.batch)
        if self.margin < 0:
            raise ConfigError(
                f"margin is {self.margin}; expected at least 0 (0: the nearest gradient that no old domain objects to)"
            )

    def trainer(self, spec: TrainSpec, lesson: StageContext) -> Trainer:
        """See `Learner`."""
        kept = keep(lesson, self.memory)
        num, size = self.batch or lesson.rows_per_step, at_once(spec, lesson)

        def correct(model: Any, step: int, scale: float) -> None:
            references = [
                memory_gradient(
                    model,
                    lesson,
                    recall(lesson, name, kept[name], step=step, num=num),
                    size=size,
                    seed=lesson.seed + step,
                    scale=scale,
                )
                for name in kept
            ]
            project(list(trained_parameters(model).values()), references, self.margin)

        return stepping_trainer(spec, correct if kept else None)
