"""What the steps of a stage leave in the run folder, and what one stage hands to the next. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from opmix.compute.cost import Cost
from opmix.lifecycle.stages import Segment
from opmix.mixing.mixture import Mixture

_Record = TypeVar("_Record")

Losses = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Split, domain: `loss` and its standard `error`, nats per token."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What one stage hands to the next."""

    model: Path | None
    """None: made or loaded from where the life starts."""
    model_key: str | None
    """Fingerprint of its weights, checked when it is loaded."""
    shape: Mapping[str, Any]
    mixture: Mixture | None
    """Last trained on; None: nothing yet."""
    cursors: Mapping[str, int] = field(default_factory=dict)
    """Training rows drawn so far, by domain."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows each of these domains had; with another number they were cut otherwise, and the cursor means nothing."""
    losses: Losses = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Task scores by domain."""
    optimizer: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StageDecision:
    """The record of a step `search`: the mixture of a segment, and what it was decided on."""

    mixture: Mapping[str, float]
    optimum: Mapping[str, float]
    interval: Mapping[str, Sequence[float]]
    action: str
    reason: str
    predicted: Mapping[str, float]
    """Losses of the mixture by evaluation set, nats per token."""
    baseline: Mapping[str, float]
    """Those of the model as it was."""
    notes: Sequence[str]
    amounts: Cost
    probes: int
    share: float
    """Of the segment's training FLOPs that the decision took."""
    peak_memory: int | None = None
    """Bytes."""
    evidence: Mapping[str, Any] | None = None
    """Of a method other than OP-Mix."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The record of a step `train`: one segment trained."""

    mixture: Mapping[str, float]
    key: str
    """That the segment's checkpoints carry."""
    cursors: Mapping[str, int]
    loss: float | None
    """Training loss that was logged last, nats per token."""
    shares: Mapping[str, float]
    """Realised shares of supervised tokens."""
    supervised_tokens: int
    amounts: Cost
    peak_memory: int | None = None
    stints: Sequence[Mapping[str, Any]] | None = None
    """Of a mixture that was decided as it trained."""
    interpolation_weights: Mapping[str, float] | None = None
    """Of adapters that were merged instead of training."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The record of a step `before` or `after`: held-out losses and task scores of the full model."""

    losses: Losses
    scores: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    amounts: Cost
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The record of a step `model`."""

    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class SegmentOutcome:
    """One segment of a stage that is over."""

    segment: Segment
    mixture: Mixture
    decision: StageDecision | None
    training: TrainingRecord


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """A stage that is over; losses and scores before and after it, `before` as far as they are known."""

    segments: Sequence[SegmentOutcome]
    old: Mixture | None
    before: Losses
    scores_before: Mapping[str, Any]
    after: Measurement
    notes: Sequence[str]


def record_json(record: Any) -> dict[str, Any]:
    """Return what the run folder keeps of a record: its fields, without those that are left at their default."""
    kept = {f.name: getattr(record, f.name) for f in fields(record)}
    needed = {f.name for f in fields(record) if f.default is MISSING}  # null where there is no value
    written = {name: value for name, value in kept.items() if value is not None or name in needed}
    return {name: value.json() if isinstance(value, Cost) else value for name, value in written.items()}


def read_record(kind: type[_Record], content: Mapping[str, Any]) -> _Record:
    """Return the record that the run folder keeps; keys of other versions are passed over."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    kept = {name: value for name, value in content.items() if name in known and name != "amounts"}
    return kind(**kept, **({"amounts": Cost.read(content)} if "amounts" in known else {}))
