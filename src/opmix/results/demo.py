"""`comparison.json`: full trainings of the demo on equal tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from opmix.results.files import Losses, OptionalFile, Shares


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One full training."""

    mixture: Shares | None = None
    measured: Losses = field(default_factory=dict)
    standard_error: Losses = field(default_factory=dict)
    predicted: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DemoComparison(OptionalFile):
    """The mixtures that were trained, and which is best."""

    NAME: ClassVar[str] = "comparison.json"
    COMMAND: ClassVar[str] = "`opmix demo`"
    tokens: int | None = None
    arms: Mapping[str, Arm]
    winner: str | None = None
    measured_gain: float | None = None
    """Nats per token."""
    predicted_gain: float | None = None
    sentence: str = ""
