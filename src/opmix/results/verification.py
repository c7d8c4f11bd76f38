"""`verification.json`: what `opmix verify` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from opmix.results.files import SCHEMA, Losses, OptionalFile, Shares


@dataclass(frozen=True, kw_only=True)
class VerifiedPoint:
    """A mixture trained directly and simulated; nats per token by evaluation set."""

    name: str
    mixture: Shares = field(default_factory=dict)
    reached: Shares = field(default_factory=dict)
    weights: Shares = field(default_factory=dict)
    direct: Losses = field(default_factory=dict)
    proxy: Losses = field(default_factory=dict)
    law: Losses = field(default_factory=dict)
    difference: Losses = field(default_factory=dict)
    standard_error: Losses = field(default_factory=dict)
    """Of `difference`, direct less proxy."""
    kl: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MeasuredMixture:
    """Objective of a directly trained mixture, and the law's."""

    name: str
    direct: float
    law: float
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VerificationFile(OptionalFile):
    """Direct training beside simulation and law."""

    NAME: ClassVar[str] = "verification.json"
    COMMAND: ClassVar[str] = "`opmix verify`"
    metrics: tuple[str, ...] = ()
    sentence: str = ""
    matters: bool = False
    regret_bound: float | None = None
    tolerance: float | None = None
    rank_agreement: float | None = None
    points: tuple[VerifiedPoint, ...] = ()
    measured: tuple[MeasuredMixture, ...] = ()
    curvature: Losses = field(default_factory=dict)
    flops: float | None = None
    full: Mapping[str, Any] | None = None
    refinement: Mapping[str, Any] | None = None

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {"schema": SCHEMA, **asdict(self)}
