"""One reader per file format: each yields documents one at a time and says file and place when it cannot."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from opmix.domain import Source
from opmix.errors import DataError
from opmix.runs.files import DAMAGED_ARRAY

BLOCK = 1 << 20
"""Bytes (or tokens) looked at in one go."""
LONGEST_LINE = 1 << 26
"""Bytes of one line of JSON: more is a damaged file or a decompression bomb rather than a document."""
LONGEST_FILE = 1 << 30
"""Bytes, decompressed, of a file that can only be read whole: a JSON array, a text."""

T = TypeVar("T", covariant=True)


class Pick(Protocol[T]):
    """What to make of one row of a table or JSON Lines file."""

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """The columns it needs of a table that has `names`.

        Raises:
            DataError: They are not there.
        """

    def __call__(self, row: Any, where: str, what: str = "key") -> T:
        """The document in one row.

        Raises:
            DataError: There is none that can be used.
        """


@dataclass(frozen=True, slots=True)
class TextField:
    """Picks the text in one field."""

    field: str

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """The field itself."""
        if self.field not in names:
            _text_of(dict.fromkeys(names), self.field, where, "column")
        return [self.field]

    def __call__(self, row: Any, where: str, what: str = "key") -> str:
        """The text."""
        return _text_of(row, self.field, where, what)


class WholeRow:
    """Picks the row as it is."""

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """All of them."""
        return list(names)

    def __call__(self, row: Any, where: str, what: str = "key") -> Any:
        """The row."""
        return row


_BAD_STREAM = (OSError, EOFError, zlib.error, zstandard.ZstdError)


class _ZstdRaw(io.RawIOBase):
    """Decompressed bytes of one or more zstd frames.

    The library's own stream reader ends quietly on a truncated file; half a corpus must not pass for one.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = None
        self._rest = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._raw.read(BLOCK)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready = self._frame.decompress(data)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, decompressed by its suffix."""
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdRaw(path.open("rb")), BLOCK)
    return path.open("rb")


def _unreadable(where: str, error: BaseException) -> DataError:
    return DataError(f"{where}: cannot be read ({type(error).__name__}: {error}); expected a whole, readable file")


def _not_utf8(where: str) -> DataError:
    return DataError(f"{where}: a name or a text in it is not UTF-8; expected UTF-8; write it again from text")


def _text_of(row: Any, field: str, where: str, what: str = "key") -> str:
    """The document's text in one JSON object or table row.

    Raises:
        DataError: No such field, or its value is no text that UTF-8 can hold.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; expected one object a line, like {{{field!r}: ...}}")
    if field not in row:
        have = ", ".join(map(repr, list(row)[:8])) or "none"
        chat = "; for conversations set the domain's `kind: chat`" if {"messages", "completion"} & set(row) else ""
        raise DataError(f"{where}: no {what} {field!r} (it has {have}); set the source's `field`{chat}")
    text = row[field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise DataError(f"{where}: {what} {field!r} is {kind}; expected text; drop the row or set another `field`")
    check_utf8(text, where, f"{what} {field!r}")
    return text


def check_utf8(text: str, where: str, what: str) -> None:
    """Refuse text that UTF-8 cannot hold.

    Raises:
        DataError: It has half a surrogate pair.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {what} holds half a surrogate pair ({error.reason}); "
            "expected text that UTF-8 can hold; repair or drop the row"
        ) from error


def read_jsonl(path: Path, pick: Pick[T], where: str) -> Iterator[T]:
    """Documents of a JSON Lines file, plain or compressed; blank lines are passed over.

    Args:
        path: The file.
        pick: What to make of a line.
        where: Who and where in words, the start of every message.

    Yields:
        One document per line.

    Raises:
        DataError: The file is damaged, a line is no JSON object, no UTF-8, or lacks the field.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(_lines(stream, where), 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if line.lstrip().startswith(b"["):
                        yield from _array(line + _rest(stream, where), pick, where)
                        return
                if line.isspace():
                    continue
                yield pick(_json(line, f"{where}:{number}"), f"{where}:{number}")
    except _BAD_STREAM as error:
        raise _unreadable(f"{where}:{number + 1}", error) from error


def _lines(stream: IO[bytes], where: str) -> Iterator[bytes]:
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{where}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; expected one document a line; split "
                "the document, "
                "or repair the file"
            )
        yield line


def _rest(stream: IO[bytes], where: str) -> bytes:
    """What is left of a file that can only be read whole."""
    content = stream.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise DataError(
            f"{where}: more than {LONGEST_FILE >> 30} GiB in one piece; expected several documents; write JSON Lines, "
            "one object a line "
            "(of an array: jq -c '.[]')"
        )
    return content


def _array(content: bytes, pick: Pick[T], where: str) -> Iterator[T]:
    rows = _json(content, where)
    if not isinstance(rows, list):
        raise DataError(f"{where}: a JSON {type(rows).__name__}; expected an array of objects, or one object a line")
    for number, row in enumerate(rows, 1):
        yield pick(row, f"{where}: item {number}")


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start} of it); expected UTF-8; convert it, say with iconv"
        ) from error
    except (ValueError, RecursionError) as error:
        array = line.lstrip().startswith(b"[")
        remedy = "repair the array, or write one object a line (jq -c '.[]')" if array else "repair or drop the line"
        raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line; {remedy}") from error


def read_text(path: Path, where: str) -> Iterator[str]:
    """The one document a text file is.

    Raises:
        DataError: The file is damaged or not UTF-8.
    """
    try:
        with _open(path) as stream:
            yield _rest(stream, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start}); expected UTF-8; convert it, e.g. with iconv"
        ) from error
    except _BAD_STREAM as error:
        raise _unreadable(where, error) from error


def read_parquet(path: Path, pick: Pick[T], where: str) -> Iterator[T]:
    """Documents of a Parquet file, read in batches of rows.

    Raises:
        DataError: The file is damaged, or the column is missing or holds something else than text.
    """
    try:
        with pq.ParquetFile(path) as file:
            columns = pick.columns(file.schema_arrow.names, where)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield pick(row, f"{where}: row {number}", "column")
    except UnicodeDecodeError as error:  # of a name or a text: Arrow does not look
        raise _not_utf8(where) from error
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(where, error) from error


def read_arrow(folder: Path, source: Source, pick: Pick[T], where: str) -> Iterator[T]:
    """Documents of a folder written by `datasets`' `save_to_disk`.

    Raises:
        DataError: No such folder, split or column, or the column holds something else than text.
    """
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises its own kinds, Arrow's and the system's
        raise _unreadable(where, error) from error
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        name = source.split or (names[0] if len(names) == 1 else None)
        if name not in names:
            raise DataError(f"{where}: split {source.split!r}; expected one of {names}; set the source's `split`")
        found = found[name]
    yield from _rows(found, pick, where)


def _rows(rows: Any, pick: Pick[T], where: str) -> Iterator[T]:
    try:
        if rows.column_names is not None:
            rows = rows.select_columns(pick.columns(rows.column_names, where))
        for number, row in enumerate(rows, 1):
            yield pick(row, f"{where}: row {number}", "column")
    except UnicodeDecodeError as error:
        raise _not_utf8(where) from error


def read_tokens(path: Path, dtype: str | None, where: str) -> npt.NDArray[np.integer[Any]]:
    """The token ids of a `.npy` file (`dtype` None) or a raw file of `dtype`: mapped, flattened to (n,).

    Raises:
        DataError: The file is damaged, empty or holds no integers.
    """
    try:
        if dtype is None:
            _check_numpy_header(path, where)
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            kind = np.dtype(dtype)
            size = path.stat().st_size
            if size % kind.itemsize:
                raise ValueError(f"{size} bytes are no whole number of {dtype}")
            tokens = np.memmap(path, dtype=kind, mode="r") if size else np.zeros(0, kind)
    except DAMAGED_ARRAY as error:
        raise DataError(
            f"{where}: token ids cannot be read ({error}); expected integers; check the file and `dtype`"
        ) from error
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind not in "ui":
        raise DataError(f"{where}: holds {getattr(tokens, 'dtype', 'several arrays')}; expected integer token ids")
    return tokens.reshape(-1)


def _check_numpy_header(path: Path, where: str) -> None:
    with path.open("rb") as file:
        start = file.read(6)
    if start and start != b"\x93NUMPY":
        raise DataError(
            f"{where}: has no NumPy header; expected a file of numpy.save; a raw file as `dolma tokens` writes it "
            "takes "
            "`format: bin` and its integer type as `dtype`"
        )
