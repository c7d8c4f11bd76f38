"""Files of token ids as trainers' own tools write them, mapped, with the document ends they know of."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.data.readers import read_tokens
from opmix.domain import SourceFormat
from opmix.errors import DataError

_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class TokenFile:
    """The token ids of one file."""

    tokens: npt.NDArray[np.integer[Any]]
    """(n,), mapped."""
    ends: npt.NDArray[np.integer[Any]] | None
    """(documents,) index after each document's last token; None: the format does not say, and the end-of-sequence id does."""


def beside(path: Path, kind: SourceFormat) -> tuple[Path, ...]:
    """The files that a file of tokens is read with: its index."""
    if kind == "megatron":
        return (path.with_suffix(".idx"),)
    return (path.with_name(f"{path.name}.index"),) if kind == "datatrove" else ()


def open_tokens(path: Path, kind: SourceFormat, dtype: str, where: str) -> TokenFile:
    """Map one file.

    Args:
        path: The tokens.
        kind: `npy`, `bin`, `megatron` or `datatrove`.
        dtype: Integer type of a `bin` file; the others say theirs.
        where: Start of messages.

    Raises:
        DataError: The file or its index is missing, damaged or holds no integers, or the two do not fit.
    """
    for index in beside(path, kind):
        if not index.is_file():
            raise DataError(f"{where}: no index beside it; expected {index.name}, as {kind} writes it; copy it there")
    if kind == "megatron":
        return _megatron(path, where)
    if kind == "datatrove":
        return _datatrove(path, where)
    return TokenFile(read_tokens(path, dtype if kind == "bin" else None, where), None)


def _megatron(path: Path, where: str) -> TokenFile:
    """`indexed_dataset.py` of megatron-core: magic, version, code of the type, two counts, lengths, byte offsets, documents."""
    (index,) = beside(path, "megatron")
    content = np.memmap(index, dtype="u1", mode="r") if index.stat().st_size else np.zeros(0, dtype="u1")
    head = content[:34].tobytes()
    if len(head) < 34 or not head.startswith(_MEGATRON):
        raise DataError(
            f"{where}: {index.name} is no Megatron index; expected one that starts with MMIDIDX; make it again"
        )
    _, code, sequences, documents = struct.unpack("<QBQQ", head[9:])
    if code not in _MEGATRON_TYPES:
        raise DataError(f"{where}: {index.name} says numbers of type {code}; expected integers: token ids")
    if len(content) < 34 + 12 * sequences + 8 * documents:
        raise DataError(
            f"{where}: {index.name} is cut off at {len(content)} bytes; expected {sequences} sequences in it"
        )
    lengths = np.frombuffer(content, "<i4", sequences, 34)
    documents_at = np.frombuffer(content, "<i8", documents, 34 + 12 * sequences)
    places = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = read_tokens(path, _MEGATRON_TYPES[code], where)
    if documents and not 0 <= documents_at.min() <= documents_at.max() <= sequences:
        raise DataError(f"{where}: {index.name} names sequences that are not there; expected at most {sequences}")
    _check_length(tokens, int(places[-1]), index, where)
    return TokenFile(tokens, places[documents_at[documents_at > 0]])


def _datatrove(path: Path, where: str) -> TokenFile:
    """`TokenizedFile` of datatrove: bare ids of two or four bytes, and the documents' ends in tokens, eight bytes each."""
    (index,) = beside(path, "datatrove")
    ends = read_tokens(index, "<u8", where)
    num, size = (int(ends[-1]) if len(ends) else 0), path.stat().st_size
    width = size // num if num else 2
    if width not in (2, 4):
        raise DataError(f"{where}: {size} bytes for {num} tokens in {index.name}; expected two or four bytes each")
    tokens = read_tokens(path, f"<u{width}", where)
    _check_length(tokens, num, index, where)
    return TokenFile(tokens, ends.astype(np.int64))


def _check_length(tokens: npt.NDArray[Any], expected: int, index: Path, where: str) -> None:
    if len(tokens) != expected:
        raise DataError(
            f"{where}: {len(tokens)} tokens; expected {expected}, as {index.name} says; copy both files again"
        )
