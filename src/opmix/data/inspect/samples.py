"""The start of a data file: enough of it to tell its schema and to estimate its size, however large it is."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from opmix.data.readers import WholeRow, read_jsonl
from opmix.domain import SourceFormat
from opmix.errors import DataError

HEAD_BYTES = 1 << 21
"""Stored bytes looked at; a file that is not larger is looked at whole."""
MAX_ROWS = 300
_MAX_EXPANDED = 1 << 26
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    """Decompressed bytes from the start of a file."""

    data: bytes
    whole: bool
    """Whether that is all there is."""
    expansion: float
    """Decompressed bytes per stored byte, 1 for a plain file."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The first rows of a file, and how many there are in all."""

    rows: tuple[dict[str, Any], ...]
    total: int
    exact: bool
    """Whether `total` was counted and not estimated from the size."""
    stretch: float
    """The whole file's size over that of these rows."""


def read_head(path: Path, limit: int | None = HEAD_BYTES) -> Head:
    """The start of a plain, gzip or zstd file.

    Args:
        path: The file; its suffix tells the compression.
        limit: Stored bytes to read; None: all.

    Raises:
        DataError: The file cannot be read, is no such archive, or ends inside it.
    """
    try:
        with path.open("rb") as stream:
            if path.suffix not in (".gz", ".zst"):
                data = stream.read(-1 if limit is None else limit)
                return Head(data, not stream.read(1), 1.0)
            return _expand(stream, path.suffix, limit)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: cannot be read ({error.__class__.__name__}: {error}); expected a whole, readable file; copy or "
            "make it again"
        ) from error


def _expand(stream: IO[bytes], suffix: str, limit: int | None) -> Head:
    parts: list[bytes] = []
    stored = expanded = 0
    frame: Any = None
    rest = b""
    while (limit is None or stored < limit) and expanded < _MAX_EXPANDED:
        chunk = rest or stream.read(_CHUNK)
        stored, rest = stored + (0 if rest else len(chunk)), b""
        if not chunk:
            if frame is not None:
                raise EOFError("the file ends inside its compressed data")
            return Head(b"".join(parts), True, expanded / stored if stored else 1.0)
        if frame is None:
            frame = zlib.decompressobj(31) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(chunk))
        expanded += len(parts[-1])
        if frame.eof:
            rest, frame = frame.unused_data.lstrip(b"\0"), None  # gzip may be padded with zeros
    return Head(b"".join(parts), not rest and not stream.read(1) and frame is None, expanded / max(stored, 1))


def read_rows(path: Path, kind: SourceFormat) -> Rows:
    """The first rows of a JSON Lines or Parquet file.

    Raises:
        DataError: The file is damaged or a row is no object.
    """
    return _parquet_rows(path) if kind == "parquet" else _json_rows(path)


def _json_rows(path: Path) -> Rows:
    head = read_head(path)
    if not head.whole and b"\n" not in head.data:  # one enormous first line
        head = read_head(path, None)
    start = head.data.removeprefix(b"\xef\xbb\xbf")
    if start.lstrip().startswith(b"["):
        return _array_rows(path)
    lines = start.splitlines()
    if not head.whole:
        lines = lines[:-1]
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = tuple(_object(line, f"{path}:{number}") for number, line in filled[:MAX_ROWS])
    seen = sum(len(line) + 1 for _, line in filled)
    size = max(seen if head.whole else path.stat().st_size * head.expansion, 1)
    stretch = size / max(sum(len(line) + 1 for _, line in filled[:MAX_ROWS]), 1)
    return Rows(rows, len(filled) if head.whole else round(size * len(filled) / max(seen, 1)), head.whole, stretch)


def _array_rows(path: Path) -> Rows:
    """The first rows of one JSON array, which can only be read whole."""
    rows = tuple(read_jsonl(path, WholeRow(), str(path)))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: item {number} is a JSON {type(row).__name__}; expected an array of objects")
    first = rows[:MAX_ROWS]
    return Rows(first, len(rows), True, len(rows) / max(len(first), 1))


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line; repair the file") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a JSON {type(row).__name__}; expected one object a line, like {{'text': ...}}; convert it, say "
            "with jq"
        )
    return row


def _parquet_rows(path: Path) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=MAX_ROWS), None)
            rows = tuple(batch.to_pylist()) if batch is not None else ()
            return Rows(rows, file.metadata.num_rows, True, file.metadata.num_rows / max(len(rows), 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected a whole Parquet file; copy or make it "
            "again"
        ) from error
