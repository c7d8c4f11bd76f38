"""`timing.json`: what a clock decides of a search or a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from opmix.mixing.decision import Verdict
from opmix.results.files import read_object, typed
from opmix.runs.files import plain, write_json

NAME = "timing.json"


@dataclass(frozen=True, kw_only=True)
class TimingFile:
    """When a decision was made and how long its parts took, seconds."""

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

    def write(self, folder: Path) -> None:
        """Write `timing.json`."""
        write_json(folder / NAME, self.json())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none.

        Raises:
            StoreError: It is damaged.
        """
        path = folder / NAME
        return typed(cls, read_object(path), path) if path.is_file() else None
