"""What continual learners share: the mixture they train on, and a Trainer that changes a step's gradient before it is clipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from opmix.continual.base import StageContext
from opmix.mixing.design import new_domains
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner
from opmix.training.factory import TrainSpec, default_trainer

Correct = Callable[[Any, int, float], None]
"""Changes `.grad` of a model in place, told (model, optimizer steps done, scale of the gradients)."""


class SteppingTrainer(Trainer):
    """`transformers.Trainer` that corrects the gradient of a step once, when all of its micro-batches are in.

    `on_pre_optimizer_step` would be too late: gradients are clipped by then. Under fp16 they still carry the loss scale here, which is
    handed on. Loss and gradient norm in the log: the loss is that of the rows alone, the norm that of the corrected gradient.
    """

    correct: Correct | None = None
    count: Callable[[int], None] | None = None
    """Told the tokens of every micro-batch, padding included."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch; after a step's last one, the correction."""
        if self.count is not None:
            self.count(inputs["labels"].numel())
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.correct is not None and self.accelerator.sync_gradients:
            scaler = getattr(self.accelerator, "scaler", None)
            self.correct(model, self.state.global_step, 1.0 if scaler is None else float(scaler.get_scale()))
        return loss


def stepping_trainer(
    spec: TrainSpec, correct: Correct | None, count: Callable[[int], None] | None = None
) -> SteppingTrainer:
    """A trainer with a correction and a count of tokens; None: without."""
    trainer = default_trainer(spec, SteppingTrainer)
    assert isinstance(trainer, SteppingTrainer)
    trainer.correct, trainer.count = correct, count
    return trainer


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True, kw_only=True)
class NewOnly:
    """Trains the model in place on the new domains, uniformly; without new ones on the current mixture."""

    @property
    def in_place(self) -> bool:
        """Yes."""
        return True

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        stage = context.problem
        new = new_domains(stage.domains, stage.old) if stage.new is None else stage.new
        if stage.old is None or not new:
            return Proposal(mixture=stage.current)
        return Proposal(mixture=Mixture.uniform(new).on(stage.domains))

    def begin(self, model: Any, lesson: StageContext) -> Any:
        """The same model."""
        return model

    def end(self, model: Any, lesson: StageContext) -> Any:
        """The same model."""
        return model
