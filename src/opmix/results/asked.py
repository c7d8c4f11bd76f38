"""`asked.json`: the runs that an ask-and-tell search asks for, and what it was told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from opmix.errors import StoreError
from opmix.results.files import SCHEMA, Losses, Shares, read_document, typed
from opmix.runs.files import write_json

NAME = "asked.json"


@dataclass(frozen=True, kw_only=True)
class AskedRun:
    """A run that somebody else makes."""

    name: str
    mixture: Shares | None = None
    """Token shares to train on; None: nothing, the model as it is now."""
    losses: Losses | None = None
    """By evaluation set, nats per token; None: not told yet, or failed."""
    failed: bool = False

    @property
    def told(self) -> bool:
        """Whether it is known how it ended."""
        return self.failed or self.losses is not None


@dataclass(frozen=True, kw_only=True)
class AskedFile:
    """Everything that an ask-and-tell search knows."""

    settings: Mapping[str, Any]
    """As `opmix.AskTell` was given them."""
    runs: tuple[AskedRun, ...]

    def write(self, folder: Path) -> None:
        """Write `asked.json`."""
        write_json(folder / NAME, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none.

        Raises:
            StoreError: It is damaged.
        """
        if not (folder / NAME).is_file():
            return None
        content = read_document(folder / NAME)
        if not isinstance(content.get("settings"), dict):
            raise StoreError(f"{folder / NAME}: damaged: no settings; start again in another folder")
        runs = typed(tuple[AskedRun, ...], content.get("runs") or [], folder / NAME, inside="runs")
        return cls(settings=content["settings"], runs=runs)  # as they are: a null is a setting too
