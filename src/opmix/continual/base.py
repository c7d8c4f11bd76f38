"""The seam of continual learners: which mixture they train on, and what their Trainer does differently.

A learner is a method too (`propose`), usually of a mixture without any old data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer

from opmix.compute.flops import ModelShape
from opmix.data import Rows
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner
from opmix.training.factory import TrainSpec
from opmix.training.objectives import Usage


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One stage's training, as a learner sees it."""

    old: Mapping[str, Rows]
    """Training rows of what was learned before, by domain; empty where nothing was."""
    old_mixture: Mixture | None
    """Of those; None where nothing was learned."""
    rows_per_step: int
    """Of one optimizer step."""
    collate: Callable[[Sequence[Any]], Any]
    """Rows to a batch that the model takes, labels included."""
    seed: int
    shape: ModelShape
    sequence_length: int
    folder: Path
    """Of this learner in this stage: what it leaves there is the next stage's `before`."""
    before: Path | None
    """Folder of the stage before, where it trained with this learner."""
    document_mask: bool = False
    """Whether attention stays inside documents, in old rows as in those trained on."""
    usage: Usage = field(default_factory=Usage)
    """To book what is done beside reading the rows: `usage.extra["flops"]` is added to the training's FLOPs, `["tokens"]` to its tokens.

    It is kept with every checkpoint; work that is done anew when a run resumes is booked once.
    """


class Learner(Protocol):
    """A way to train."""

    @property
    def in_place(self) -> bool:
        """Whether the Trainer trains the model itself, so that its checkpoints are models (False: adapters around it)."""

    def propose(self, context: TrialRunner) -> Proposal:
        """The mixture it trains on; see `MixingMethod`."""

    def begin(self, model: Any, lesson: StageContext) -> Any:
        """Before training: the model to train, which may be the same; called again when a run resumes, with the stage's first model."""

    def trainer(self, spec: TrainSpec, lesson: StageContext) -> Trainer:
        """A Trainer for the run; `opmix.training.factory.default_trainer(spec, kind)` makes one of another kind."""

    def end(self, model: Any, lesson: StageContext) -> Any:
        """After training: the plain model; and leave in `lesson.folder` what the next stage needs."""
