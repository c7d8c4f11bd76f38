"""Averaged Gradient Episodic Memory: no step may, to first order, raise the mean loss on what is remembered.

Chaudhry, Ranzato, Rohrbach and Elhoseiny 2019, "Efficient Lifelong Learning with A-GEM", arXiv 1812.00420, equation 11: where
g . g_ref < 0, the gradient becomes g - (g . g_ref / g_ref . g_ref) g_ref.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from opmix.continual.base import StageContext
from opmix.continual.memory import keep, memory_gradient, recall, share_out
from opmix.continual.projection import project
from opmix.continual.stepping import NewOnly, stepping_trainer, trained_parameters
from opmix.errors import ConfigError
from opmix.training.factory import TrainSpec


@dataclass(frozen=True, kw_only=True)
class AGem(NewOnly):
    """A-GEM.

    The paper draws the memory batch from all tasks' memories together; so here, evenly over the old domains. Projected is the gradient
    before the optimizer sees it, as in the paper, whose optimizer is plain SGD: under Adam the property holds of the gradient, not of the
    step. The domains' training rows stand in for a memory filled while they were learned. Costs a second backward pass a step.
    """

    memory: int = 256
    """Rows kept of each old domain. The paper keeps few examples per class and task; a row of text has no class."""
    batch: int | None = None
    """Rows of a memory batch; None: as many as a step's. The paper's memory batch is at least as large as its learning batch of 10."""

    def __post_init__(self) -> None:
        check_memory(self.memory, self.batch)

    def trainer(self, spec: TrainSpec, lesson: StageContext) -> Trainer:
        """See `Learner`."""
        kept = keep(lesson, self.memory)
        shares = (
            dict(zip(kept, share_out(self.batch or lesson.rows_per_step, list(kept)).tolist(), strict=True))
            if kept
            else {}
        )
        size = at_once(spec, lesson)

        def correct(model: Any, step: int, scale: float) -> None:
            rows = [row for name in kept for row in recall(lesson, name, kept[name], step=step, num=shares[name])]
            reference = memory_gradient(model, lesson, rows, size=size, seed=lesson.seed + step, scale=scale)
            project(list(trained_parameters(model).values()), [reference])

        return stepping_trainer(spec, correct if kept else None)


def at_once(spec: TrainSpec, lesson: StageContext) -> int:
    """Rows of a micro-batch: what the device is known to take."""
    return max(1, lesson.rows_per_step // int(spec.arguments.get("gradient_accumulation_steps", 1)))


def check_memory(memory: int, batch: int | None) -> None:
    """Refuse an empty memory.

    Raises:
        ConfigError: A number below one.
    """
    for name, value in (("memory", memory), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1 row")
