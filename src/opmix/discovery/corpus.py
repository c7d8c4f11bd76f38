"""An unlabelled corpus as a stream of numbered documents, and a fair sample of it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from opmix.data.inspect.samples import read_rows
from opmix.data.inspect.schema import schema_of
from opmix.data.sources import TOKEN_FORMATS, iter_documents, resolve
from opmix.domain import Source
from opmix.errors import DataError

CHARACTERS = 4000
"""Of a document that are looked at to tell what it is about; all of it is written."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it stands."""

    file: str
    number: int
    """In its file, from 0, empty ones not counted."""
    text: str


@dataclass(frozen=True)
class Corpus:
    """Files of text in any format that `opmix.data` reads."""

    sources: tuple[Source, ...]
    """One for each file."""

    @classmethod
    def of(cls, paths: Sequence[str], field: str | None = None) -> Corpus:
        """Files, globs and folders.

        Args:
            paths: What is read, in this order.
            field: Key of the text in JSON Lines and Parquet; None: told from each file's first rows.

        Raises:
            DataError: A file is missing, of an unknown kind, holds token ids or no text.
        """
        sources = []
        for file in resolve(Source(paths=tuple(paths))):
            if file.format in TOKEN_FORMATS:
                raise DataError(f"{file.path}: holds token ids; expected text; give the text the ids were made from")
            key = field or "text"
            if field is None and file.format in ("jsonl", "parquet"):
                schema = schema_of(read_rows_of(file.path, file.format))
                if schema.kind != "text":
                    raise DataError(
                        f"{file.path}: no key holds text in every row; expected one, such as 'text'; name it with "
                        "--field"
                    )
                key = schema.field
            sources.append(Source(paths=(file.path,), format=file.format, field=key))
        return cls(tuple(sources))

    def __iter__(self) -> Iterator[Document]:
        """Every document, in a fixed order, one at a time."""
        for source in self.sources:
            for number, text in enumerate(iter_documents(source)):
                yield Document(source.paths[0], number, text)


def read_rows_of(path: str, kind: str) -> Sequence[dict[str, object]]:
    """The first rows of a file.

    Raises:
        DataError: The file is damaged.
    """
    from pathlib import Path

    return read_rows(Path(path), "parquet" if kind == "parquet" else "jsonl").rows


def fair_sample(corpus: Corpus, size: int, seed: int, told: Callable[[int], None]) -> tuple[list[str], int]:
    """The beginnings of at most `size` documents: those whose keyed hash is smallest.

    The choice depends on the documents and the seed, not on how they are ordered or cut into files.

    Args:
        corpus: One pass is made over it.
        size: Documents to keep.
        seed: Key of the hash.
        told: Called with the number of documents read so far.

    Returns:
        The texts, cut to `CHARACTERS`, in the order of their hashes, and how many documents there are in all.
    """
    key = seed.to_bytes(8, "little")
    heap: list[tuple[int, int, str]] = []
    count = 0
    for count, document in enumerate(corpus, 1):
        digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        entry = (-int.from_bytes(digest, "little"), -count, document.text[:CHARACTERS])
        if len(heap) < size:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
        if count % 1000 == 0:
            told(count)
    told(count)
    return [text for *_, text in sorted(heap, reverse=True)], count
