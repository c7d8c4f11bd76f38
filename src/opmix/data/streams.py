"""Rows from elsewhere, datasets of the hub and files at URLs: read once, and kept as they come, so that a read that was stopped goes on.

What is kept of a stream is a folder of parts, each some rows and where the stream stood after them; it goes when its tokens are cached.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import datasets

from opmix.data.readers import Pick
from opmix.domain import COMPRESSED, Source, is_url
from opmix.errors import DataError
from opmix.runs.files import writing_prefix

T = TypeVar("T")
_PART, _PART_BYTES = 1024, 1 << 24
"""Rows, and characters of their JSON, of a part: what is lost of a read that is killed."""
_FAILED = (OSError, EOFError, ValueError, KeyError)
_BUILDERS = {"jsonl": "json", "parquet": "parquet", "text": "text"}
_SUFFIXES = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".txt": "text", ".md": "text"}


def read_stream(name: str, source: Source, pick: Pick[T], where: str, keep: Path | None = None) -> Iterator[T]:
    """What `pick` makes of each row of a stream.

    Args:
        name: Of a hub dataset (`name@revision` pins the revision), or a URL of a file.
        source: Its split, configuration and format.
        pick: See `Pick`.
        where: Start of messages.
        keep: Folder in which rows are kept as they come; None: they are not.

    Raises:
        DataError: It cannot be reached or opened, or has no such column.
    """
    try:
        stream = _opened(name, source, where)
        columns = None
        if stream.column_names is not None:
            columns = pick.columns(stream.column_names, where)
            stream = stream.select_columns(columns)
        rows: Iterator[Any] = iter(stream)
        if keep is not None and not Path(name).is_dir():
            rows = _Kept(kept_folder(keep, name, source, columns)).rows(stream)
        for number, row in enumerate(rows, 1):
            yield pick(row, f"{where}: row {number}", "column")
    except DataError:
        raise
    except Exception as error:  # network, unknown name, unknown configuration: each raises another kind
        raise DataError(
            f"{where}: the dataset cannot be opened ({type(error).__name__}: {error}); expected a hub name such as "
            "'org/name', a local folder or a URL; check the name, `config_name`, `split`, the network, and whether the "
            "package that reads such addresses is installed (pip install 'opmix[urls]' for https); what was read is "
            "kept, and the same command goes on"
        ) from error


def _opened(name: str, source: Source, where: str) -> Any:
    if not is_url(name):
        repository, _, revision = name.partition("@")
        return datasets.load_dataset(
            repository, source.config_name, split=source.split or "train", streaming=True, revision=revision or None
        )
    builder = _BUILDERS.get(source.format or "") or _SUFFIXES.get(_suffix(name))
    if builder is None:
        raise DataError(
            f"{where}: the kind of file cannot be told; expected {', '.join(_SUFFIXES)}; set the source's `format`"
        )
    extra = {"sample_by": "document"} if builder == "text" else {}
    return datasets.load_dataset(builder, data_files=[name], split="train", streaming=True, **extra)


def _suffix(url: str) -> str:
    path = PurePosixPath(urlsplit(url).path)
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def kept_folder(keep: Path, name: str, source: Source, columns: list[str] | None) -> Path:
    """Where rows of a stream are kept."""
    parts = (name, source.config_name, source.split, source.format, columns)
    return _folder_of(keep, name) / hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def forget(keep: Path, name: str) -> None:
    """Remove what is kept of a stream: its tokens are cached."""
    shutil.rmtree(_folder_of(keep, name), ignore_errors=True)


def _folder_of(keep: Path, name: str) -> Path:
    return keep / f"stream-{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class _Kept:
    """Parts of a stream on disk, in order."""

    folder: Path

    def rows(self, stream: Any) -> Iterator[Any]:
        """Those that are there, then the stream's further ones, which are kept as they come."""
        number, state = 0, None
        while (part := self._read(number)) is not None:
            yield from part["rows"]
            number, state = number + 1, part["state"]
        if state is not None:
            stream.load_state_dict(state)
        waiting: list[str] = []
        size = 0
        for row in stream:
            waiting.append(json.dumps(row, ensure_ascii=False, default=str))
            size += len(waiting[-1])
            if len(waiting) >= _PART or size >= _PART_BYTES:
                self._write(number, waiting, stream.state_dict())
                number, waiting, size = number + 1, [], 0
            yield row

    def _read(self, number: int) -> dict[str, Any] | None:
        """A part; None where it is not there, or damaged."""
        with suppress(*_FAILED), gzip.open(self._path(number), "rt", encoding="utf-8") as file:
            state, *rows = file.read().split("\n")  # JSON may hold other ends of lines, U+2028 among them
            return {"state": json.loads(state), "rows": [json.loads(row) for row in rows]}
        return None

    def _write(self, number: int, rows: list[str], state: Any) -> None:
        """A part, whole or not at all; a stream whose place cannot be told is not kept."""
        with suppress(TypeError):
            content = "\n".join([json.dumps(state), *rows]).encode()
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{writing_prefix()}{number}"
            temporary.write_bytes(gzip.compress(content, compresslevel=1))
            temporary.replace(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.gz"
