"""`data.json`: what a life's steps follow from of its data, so that `opmix status` need not read them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from opmix.errors import StoreError
from opmix.lifecycle.run_status import DATA
from opmix.lifecycle.steps import DataFacts
from opmix.results.files import SCHEMA, read_object, typed
from opmix.runs.files import write_json

NAME = DATA
_COMMAND = "`opmix run` or `opmix compare`"


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """What the file holds beside the facts."""

    files: Mapping[str, Mapping[str, tuple[int, int]]]
    tokens: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """What a life recorded of its data; keys of the facts stand at the file's top level."""

    facts: DataFacts
    files: Mapping[str, Mapping[str, Sequence[int]]]
    """By domain and path: size, bytes, and time of the last change, nanoseconds."""
    tokens: Mapping[str, int]
    """By domain: tokens that can be trained on."""

    def write(self, folder: Path, name: str = NAME) -> None:
        """Write `data.json`, or the file of one method of a comparison."""
        write_json(folder / name, {**asdict(self.facts), "files": self.files, "tokens": self.tokens, "schema": SCHEMA})

    @classmethod
    def read(cls, folder: Path, name: str = NAME) -> Self:
        """Return the folder's file.

        Raises:
            StoreError: It is missing or damaged.
        """
        path = folder / name
        if not path.is_file():
            raise StoreError(f"{folder}: no {name}; expected the --out folder of {_COMMAND}")
        content = read_object(path, _COMMAND)
        beside = typed(_Beside, content, path)
        return cls(facts=typed(DataFacts, content, path), files=beside.files, tokens=beside.tokens)

    def changed(self) -> tuple[str, ...]:
        """Domains and targets whose files have changed on disk since, or are gone."""
        return tuple(name for name, files in self.files.items() if _changed(files))


def _changed(files: Mapping[str, Sequence[int]]) -> bool:
    for path, (size, modified) in files.items():
        try:
            found = Path(path).stat()
        except OSError:
            return True
        if found.st_size != size or found.st_mtime_ns != modified:
            return True
    return False
