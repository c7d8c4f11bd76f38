"""`manifest.json`: the command and settings that a run folder came from, and the machine and versions it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from opmix.domain import RowSchema
from opmix.results.files import SCHEMA, read_object, typed
from opmix.runs.files import environment, plain, without_secrets, write_json

NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run was told."""

    command: str | None = None
    config: Mapping[str, Any] | None = None
    base: str | None = None
    """Folder that relative paths of the configuration start from."""
    rows: Mapping[str, RowSchema]
    """Domain to what its rows hold, where they are conversations."""
    content: Mapping[str, Any]
    """All of the file."""

    @classmethod
    def write(cls, folder: Path, command: str, **facts: Any) -> None:
        """Write `manifest.json`: the command, its facts without secrets, and this machine."""
        write_json(
            folder / NAME, {"command": command, **without_secrets(plain(facts)), **environment(), "schema": SCHEMA}
        )

    @classmethod
    def read(cls, folder: Path, command: str = "the command") -> Self:
        """Return the folder's file.

        Raises:
            StoreError: It is missing or damaged.
        """
        content = read_object(folder / NAME, command)
        rows = typed(dict[str, RowSchema], content.get("rows") or {}, folder / NAME, inside="rows")
        return cls(content=content, rows=rows, **{key: content.get(key) for key in ("command", "config", "base")})

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none.

        Raises:
            StoreError: It is damaged.
        """
        return cls.read(folder) if (folder / NAME).is_file() else None
