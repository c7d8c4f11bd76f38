"""Reading a run folder's files: what is damaged is told by file, place and remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import ValidationError

from opmix.errors import StoreError
from opmix.runs.files import json_of, write_json
from opmix.settings.checker import checker

SCHEMA = 1
_T = TypeVar("_T")
Shares = Mapping[str, float]
"""Token share per domain."""
Losses = Mapping[str, float]
"""Nats per token per evaluation set."""


def read_json(path: Path, command: str = "the command") -> Any:
    """Return what a file holds.

    Raises:
        StoreError: It is missing or no JSON.
    """
    try:
        return json_of(path)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: cannot be read as JSON ({error}); run {command} again to rewrite it") from error


def read_object(path: Path, command: str = "the command") -> dict[str, Any]:
    """Return the object that a file holds.

    Raises:
        StoreError: It is missing, no JSON, another kind of value, or of a later schema; files written before 0.2 may tell none.
    """
    content = read_json(path, command)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise StoreError(f"{path}: damaged: holds a {kind}; expected an object; run {command} again to rewrite it")
    if isinstance(schema := content.get("schema"), int | float) and schema > SCHEMA:
        raise _of_another_schema(path, schema)
    return content


def _of_another_schema(path: Path, schema: Any) -> StoreError:
    return StoreError(
        f"{path}: schema {schema!r}; this version of opmix reads schema {SCHEMA}; use the one that wrote it"
    )


def read_document(path: Path, command: str = "the command", *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the object that a file of schema 1 holds.

    Raises:
        StoreError: It is missing, damaged or of another schema, or one of the keys that are `needed` is missing or empty.
    """
    content = read_json(path, command)
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else type(content).__name__
    if schema != SCHEMA:
        raise _of_another_schema(path, schema)
    for key in needed:
        if not content.get(key):
            raise StoreError(f"{path}: damaged: {key} is missing or empty; run {command} again to rewrite it")
    return dict(content)


@dataclass(frozen=True, kw_only=True)
class OptionalFile:
    """A file that a run folder may hold: the dataclass of what is in it writes and reads it."""

    NAME: ClassVar[str]
    COMMAND: ClassVar[str] = "the command"
    """What writes it again."""

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(folder / self.NAME, self.json())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none.

        Raises:
            StoreError: It is damaged, or of a later schema.
        """
        path = folder / cls.NAME
        return typed(cls, read_object(path, cls.COMMAND), path) if path.is_file() else None


def as_written(value: Any) -> Any:
    """Return a value with its dataclasses as mappings of their fields; one left at None that may be absent is left out."""
    if is_dataclass(value):
        kept = {f.name: (getattr(value, f.name), f.default is MISSING) for f in fields(value)}
        return {name: as_written(item) for name, (item, needed) in kept.items() if needed or item is not None}
    if isinstance(value, Mapping):
        return {key: as_written(item) for key, item in value.items()}
    return [as_written(item) for item in value] if isinstance(value, list | tuple) else value


def typed(kind: type[_T], raw: Any, path: Path, inside: str = "", *, nulls: bool = False) -> _T:
    """Return JSON as one of the classes here.

    Args:
        kind: A dataclass.
        raw: What was read.
        path: The file it was read from.
        inside: Key of the file that it was read under.
        nulls: Keep what is null; else that means the same as an absent key.

    Raises:
        StoreError: Values are missing or of another type; names the first three places.
    """
    try:
        found: _T = checker(cast("Any", kind)).validate_python(raw if nulls else _without_nulls(raw))
        return found
    except ValidationError as error:
        within = (inside,) if inside else ()
        problems = [
            f"{'.'.join(map(str, (*within, *p['loc']))) or 'top level'}: {p['msg']} (found {str(p['input'])[:60]!r})"
            for p in error.errors()
        ]
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        message = f"{path}: damaged: {'; '.join(problems[:3])}{more}; run the command again to rewrite it"
        raise StoreError(message) from error


def _without_nulls(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_nulls(value) for key, value in raw.items() if value is not None}
    if isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        return [_without_nulls(item) for item in raw]
    return raw
