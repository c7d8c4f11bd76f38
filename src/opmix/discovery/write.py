"""What a discovery leaves behind: files of documents or a table of assignments, and a fragment for `search.yaml`."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from opmix.discovery.corpus import Document
from opmix.errors import ConfigError, StoreError
from opmix.runs.files import write_text
from opmix.scaffold.render import comment, scalar

TABLE = "assignments.csv.gz"
RECORD = "discovery.json"
FRAGMENT = "domains.yaml"


def make_room(out: Path, *, force: bool) -> None:
    """A folder without leftovers, which would otherwise pass for domains.

    Raises:
        ConfigError: It holds something and `force` is not set, or holds something that no discovery wrote.
        StoreError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [path for path in out.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise StoreError(f"{out}: cannot be used as a folder ({error.strerror}); choose another --out") from error
    if there and not force:
        raise ConfigError(
            f"{out}: is not empty; expected an empty or new folder; give --force to replace a former discovery there"
        )
    if not there:
        return
    try:
        own = {str(name) for name in json.loads((out / RECORD).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        own = set()
    if foreign := [path.name for path in there if path.name not in own]:
        raise ConfigError(
            f"{out}: holds {foreign[0]}, which no discovery wrote; expected a folder of its own; choose another --out"
        )
    for path in there:
        path.unlink()


class DomainFiles:
    """One `<domain>.jsonl.gz` for each domain, or one table; under temporary names until `commit`."""

    def __init__(self, out: Path, names: Sequence[str], *, index_only: bool) -> None:
        self.out, self.names, self._index = out, tuple(names), index_only
        self.files = (TABLE,) if index_only else tuple(f"{name}.jsonl.gz" for name in self.names)
        self.documents = [0] * len(self.names)
        self.bytes = [0] * len(self.names)
        self._stack = ExitStack()
        self._streams: list[IO[str]] = []

    def __enter__(self) -> Self:
        """Open all files."""
        for name in self.files:
            raw = self._stack.enter_context(self._partial(name).open("wb"))
            # No name and time in the header: the same input gives the same bytes.
            packed = self._stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
            stream = io.TextIOWrapper(cast("IO[bytes]", packed), encoding="utf-8", newline="")
            self._streams.append(self._stack.enter_context(stream))
        if self._index:
            csv.writer(self._streams[0]).writerow(("file", "document", "domain", "similarity"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind that was not committed."""
        self._stack.close()
        for name in self.files:
            self._partial(name).unlink(missing_ok=True)

    def write(self, document: Document, label: int, similarity: float) -> None:
        """Put a document into domain number `label`."""
        self.documents[label] += 1
        self.bytes[label] += len(document.text.encode("utf-8", "surrogatepass"))
        if self._index:
            csv.writer(self._streams[0]).writerow(
                (document.file, document.number, self.names[label], f"{similarity:.4f}")
            )
        else:
            self._streams[label].write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")

    def commit(self) -> None:
        """Close and give the final names; domains that stayed empty get no file."""
        self._stack.close()
        for name, count in zip(self.files, self.documents if not self._index else (1,), strict=True):
            if count:
                self._partial(name).replace(self.out / name)

    def _partial(self, name: str) -> Path:
        return self.out / f".{name}.partial"


def write_fragment(out: Path, domains: Sequence[tuple[str, int, tuple[str, ...]]]) -> Path:
    """Write `domains.yaml`: name, documents and terms of each domain that has a file."""
    lines = [
        "# Written by `opmix discover`; goes into search.yaml as it is. Or: opmix init on this folder.",
        "domains:",
    ]
    for name, documents, terms in domains:
        path = (out / f"{name}.jsonl.gz").resolve()
        lines.append(f"  {scalar(name)}: {scalar(str(path))}  # {documents} documents: {comment(', '.join(terms))}")
    return write_text(out / FRAGMENT, "\n".join(lines) + "\n")
