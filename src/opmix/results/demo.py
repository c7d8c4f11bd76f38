"""`comparison.json`: full trainings of the demo on equal tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from opmix.results.files import read_json, typed
from opmix.results.mixture import Losses, Shares
from opmix.runs.files import write_json

NAME = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One full training."""

    mixture: Shares | None = None
    measured: Losses = field(default_factory=dict)
    standard_error: Losses = field(default_factory=dict)
    predicted: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DemoComparison:
    """The mixtures that were trained, and which is best."""

    tokens: int | None = None
    arms: Mapping[str, Arm]
    winner: str | None = None
    measured_gain: float | None = None
    """Nats per token."""
    predicted_gain: float | None = None
    sentence: str = ""

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write `comparison.json`."""
        write_json(folder / NAME, self.json())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none.

        Raises:
            StoreError: It is damaged.
        """
        path = folder / NAME
        return typed(cls, read_json(path, "`opmix demo`"), path) if path.is_file() else None
