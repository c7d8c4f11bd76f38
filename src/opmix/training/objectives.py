"""What is learned from a row: the one seam of training objectives, the same for probes and full runs.

`causal_lm` and `sft` are one thing here: cross-entropy on the labels of a row, all tokens of a text, the answers of a conversation.
Self-distillation is `opmix.training.distillation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch.utils.data import Dataset

from opmix.compute.flops import ModelShape
from opmix.data import MixtureDataset, Plan, Rows, pad_rows
from opmix.training.factory import TrainerFactory, default_trainer
from opmix.training.settings import ObjectiveName


@dataclass
class Usage:
    """What a run did beside reading its rows; filled in by its trainer."""

    sampled_tokens: int = 0
    """Tokens the student wrote."""
    flops: float | None = None
    """Counted while training; None: told from the rows."""
    extra: dict[str, float] = field(default_factory=dict)
    """`tokens` and `flops` of passes beside the training."""

    def book(self, *, tokens: float = 0.0, flops: float = 0.0) -> None:
        """Add a pass beside the training."""
        for kind, amount in (("tokens", tokens), ("flops", flops)):
            self.extra[kind] = self.extra.get(kind, 0.0) + amount


class Objective(Protocol):
    """How rows become batches, which trainer learns from them, and what that costs."""

    @property
    def name(self) -> ObjectiveName:
        """As in the configuration."""

    @property
    def grouped(self) -> bool:
        """Whether the dataset must give whole micro-batches, even where all rows are worth the same."""

    def settings(self) -> dict[str, Any]:
        """What a run's result depends on besides model, rows and trainer arguments: part of its fingerprint."""

    def dataset(self, rows: Mapping[str, Rows], plan: Plan, *, document_mask: bool) -> Dataset[Any]:
        """The rows of the plan, one an item."""

    def collate(self, items: Sequence[Any]) -> Any:
        """Rows to a micro-batch."""

    def trainer(self, make_trainer: TrainerFactory | None, usage: Usage, shape: ModelShape) -> TrainerFactory:
        """The factory to use: the user's, else the objective's own, which fills in `usage`."""

    def flops(self, shape: ModelShape, *, row_tokens: int, length: int, adapter_parameters: int | None = None) -> float:
        """Told from the rows alone, for estimates and for trainers that do not count.

        Args:
            shape: The model.
            row_tokens: Of all rows.
            length: Tokens a row attends over, at most.
            adapter_parameters: Of the adapter that is trained; None: the whole model is.
        """


@dataclass(frozen=True)
class CrossEntropy:
    """Maximum likelihood of the supervised tokens."""

    name: ObjectiveName = "causal_lm"
    grouped: bool = False

    def settings(self) -> dict[str, Any]:
        """Nothing: the rows say it all."""
        return {}

    def dataset(self, rows: Mapping[str, Rows], plan: Plan, *, document_mask: bool) -> Dataset[Any]:
        """`MixtureDataset`."""
        return MixtureDataset(rows, plan, document_mask=document_mask)

    def collate(self, items: Sequence[Any]) -> Any:
        """Padded on the right."""
        return pad_rows(items)

    def trainer(self, make_trainer: TrainerFactory | None, usage: Usage, shape: ModelShape) -> TrainerFactory:
        """`default_trainer`: TRL's SFTTrainer does the same on masked rows (`opmix.training.trl_sft`)."""
        return make_trainer or default_trainer

    def flops(self, shape: ModelShape, *, row_tokens: int, length: int, adapter_parameters: int | None = None) -> float:
        """One forward and backward pass."""
        if adapter_parameters is None:
            return row_tokens * shape.train(length)
        return row_tokens * shape.train_lora(length, adapter_parameters)


CAUSAL_LM = CrossEntropy("causal_lm")
SFT = CrossEntropy("sft")
