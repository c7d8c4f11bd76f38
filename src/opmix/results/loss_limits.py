"""What is foretold of losses that may rise only so far; `limits` in `mixture.json`, where there are such limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from opmix.mixing.safe_limits import LossLimit

KEY = "limits"


@dataclass(frozen=True, kw_only=True)
class LimitEntry:
    """One loss at the recommended mixture at the end of the stage, percent above the current model's."""

    limit: float
    foretold: float
    interval: tuple[float, float]
    """At 60 %: its upper end keeps the limit."""
    binds: bool
    """The upper end of the interval is at the limit: without it the mixture would go further."""
    kept: bool
    """The upper end does not exceed the limit."""

    @classmethod
    def of(cls, found: LossLimit) -> Self | None:
        """None where the loss that the limit is in percent of is not known."""
        if not found.current:
            return None

        def percent(loss: float) -> float:
            return 100 * (loss / float(found.current or 1.0) - 1)

        low, high = map(percent, found.interval)
        return cls(
            limit=percent(found.limit),
            foretold=percent(found.foretold),
            interval=(low, high),
            binds=found.binds,
            kept=found.kept,
        )

    def __str__(self) -> str:
        return f"{self.foretold:+.1f} % ({self.interval[0]:+.1f} to {self.interval[1]:+.1f}), at most {self.limit:+.1f}"


def limits_json(found: Iterable[LossLimit]) -> dict[str, Any]:
    """What the file holds."""
    entries = {x.metric: LimitEntry.of(x) for x in found}
    return {m: asdict(e) for m, e in entries.items() if e is not None}


def read_limits(evidence: Mapping[str, Any]) -> dict[str, LimitEntry]:
    """Those of a document's evidence; none: no limits, or a file that somebody else wrote otherwise."""
    try:
        return {m: LimitEntry(**{**e, "interval": tuple(e["interval"])}) for m, e in evidence[KEY].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def limit_sentences(limits: Mapping[str, LimitEntry]) -> list[str]:
    """For the terminal: limits that no mixture keeps for sure, and those that bind."""
    broken = {m: e for m, e in limits.items() if not e.kept}
    bound = {m: e for m, e in limits.items() if e.binds and e.kept}
    lines = []
    if broken:
        told = "; ".join(f"{m} {e}" for m, e in broken.items())
        lines.append(f"limits that the interval's upper end does not keep, by the nearest mixture: {told}")
    if bound:
        lines.append("limits that bind, of the loss now: " + "; ".join(f"{m} {e}" for m, e in bound.items()))
    return lines
