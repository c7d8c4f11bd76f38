"""`timing.json`: what a clock decides of a search or a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from opmix.results.files import OptionalFile
from opmix.runs.files import plain

if TYPE_CHECKING:
    from opmix.mixing.decision import Verdict


@dataclass(frozen=True, kw_only=True)
class TimingFile(OptionalFile):
    """When a decision was made and how long its parts took, seconds."""

    NAME: ClassVar[str] = "timing.json"
    created: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By part: reading, searching, ..."""
    solver_seconds: float | None = None
    cost: Mapping[str, float] | None = None
    """By purpose, of a search."""

    @classmethod
    def of(
        cls, verdict: Verdict, *, seconds: Mapping[str, float] | None = None, cost: Mapping[str, float] | None = None
    ) -> Self:
        """Return the file of a decision made now."""
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            solver_seconds=verdict.optimum.seconds,
            cost=cost,
            seconds=dict(verdict.seconds if seconds is None else seconds),
        )

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        content = plain(asdict(self))
        return {key: value for key, value in content.items() if key != "cost" or self.cost is not None}
