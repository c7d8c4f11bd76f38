"""Files of token ids as trainers' own tools write them, mapped, with the document ends they know of."""

from __future__ import annotations

import json
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opmix.data.readers import read_tokens
from opmix.domain import SourceFormat
from opmix.errors import DataError

Int64 = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer[Any]]

_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LITDATA_TYPES = {
    "no_header_tensor": {
        11: "u1",
        12: "i1",
        13: "<i2",
        14: "<i2",
        15: "<i4",
        16: "<i4",
        17: "<i8",
        18: "<i8",
        20: "<u2",
    },
    "no_header_numpy": {0: "i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "u1", 5: "<u2", 6: "<u4", 7: "<u8"},
}
"""Serializer and code of `index.json` to the type of an id (litdata 0.2.76, constants.py)."""

TOKENS_OF_FOLDER: dict[SourceFormat, str] = {"megatron": "*.bin", "datatrove": "*.ds", "litdata": "chunk-*.bin"}
"""Files of tokens among what lies in a folder; of the other formats suffixes tell."""


class Ends(Protocol):
    """Where documents end, looked up where it is asked: an index of billions is not read to find one."""

    def __len__(self) -> int:
        """Documents."""

    def __getitem__(self, which: Any) -> Any:
        """Index after the last token of one document, or of a slice of them (n,)."""


@dataclass(frozen=True)
class TokenFile:
    """The token ids of one file."""

    tokens: Ids
    """(n,), mapped."""
    ends: Ends | None
    """Of its documents, rising; None: the format does not say, and the end-of-sequence id does."""

    def read(self, first: int, last: int) -> Ids:
        """Some ids, (n,), by one read of the file: a map faults page by page, a hundred times slower where that is dear.

        Raises:
            DataError: The file has become shorter.
        """
        mapped = self.tokens
        if first >= last or not isinstance(mapped, np.memmap):
            return mapped[first:last]
        start = mapped.offset + first * mapped.dtype.itemsize
        found: Ids = np.fromfile(str(mapped.filename), np.dtype(mapped.dtype.str), last - first, offset=start)
        if len(found) < last - first:
            raise DataError(
                f"{mapped.filename}: has become shorter; expected it to stay as it is while it is trained on"
            )
        return found

    def starts(self, first: int, last: int, eos: int) -> Int64:
        """Where documents begin among the tokens `first` to before `last`, (m,); the file's own start is such a place."""
        if first >= last:
            return np.zeros(0, dtype=np.int64)
        if self.ends is None:
            after = np.flatnonzero(self.read(max(first - 1, 0), last - 1) == eos) + max(first, 1)
        else:
            ends: Sequence[int] = self.ends  # type: ignore[assignment]  # bisect needs no more than Ends has
            after = np.unique(np.asarray(self.ends[bisect_left(ends, max(first, 1)) : bisect_right(ends, last - 1)]))
        return np.concatenate([[0] if first <= 0 < last else [], after]).astype(np.int64)


def beside(path: Path, kind: SourceFormat) -> tuple[Path, ...]:
    """The files that a file of tokens is read with: its index."""
    if kind == "megatron":
        return (path.with_suffix(".idx"),)
    if kind == "litdata":
        return (path.with_name("index.json"),)
    return (path.with_name(f"{path.name}.index"),) if kind == "datatrove" else ()


def open_tokens(path: Path, kind: SourceFormat, dtype: str, where: str) -> TokenFile:
    """Map one file.

    Args:
        path: The tokens.
        kind: `npy`, `bin`, `megatron`, `datatrove` or `litdata`.
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
    if kind == "litdata":
        return _litdata(path, where)
    return TokenFile(read_tokens(path, dtype if kind == "bin" else None, where), None)


@dataclass(frozen=True)
class _MegatronEnds:
    """A document is some sequences: its end is where the sequence after its last begins."""

    documents: Int64
    """(documents + 1,) the first sequence of each, and their number, mapped."""
    places: Int64
    """(sequences,) where each begins, in bytes, mapped."""
    width: int
    num_tokens: int
    where: str

    def __len__(self) -> int:
        return max(len(self.documents) - 1, 0)

    def __getitem__(self, which: Any) -> Any:
        inner = slice(which.start, which.stop, which.step).indices(len(self)) if isinstance(which, slice) else None
        sequence = np.asarray(self.documents[1:][slice(*inner) if inner else which])
        count = len(self.places)
        if sequence.size and not 0 <= sequence.min() <= sequence.max() <= count:
            raise DataError(f"{self.where}: its index names sequences that are not there; expected at most {count}")
        ends = np.append(self.places[np.minimum(sequence, count - 1)] // self.width, 0)[:-1] if count else sequence
        ends = np.where(sequence.reshape(-1) == count, self.num_tokens, ends)
        return ends if inner else int(ends[0])


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
    kind = np.dtype(_MEGATRON_TYPES[code])
    lengths = np.frombuffer(content, "<i4", sequences, 34)
    places = np.frombuffer(content, "<i8", sequences, 34 + 4 * sequences)
    tokens = read_tokens(path, kind.str, where)
    _check_length(tokens, int(places[-1]) // kind.itemsize + int(lengths[-1]) if sequences else 0, index, where)
    starts = np.frombuffer(content, "<i8", documents, 34 + 12 * sequences)
    return TokenFile(tokens, _MegatronEnds(starts, places, kind.itemsize, len(tokens), f"{where}: {index.name}"))


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
    return TokenFile(tokens, ends.view(np.int64))


def _litdata(path: Path, where: str) -> TokenFile:
    """A chunk of litdata's `TokensLoader`: number of items, their byte offsets (all four bytes each), bare ids.

    An item is whatever was yielded, a document or a block of some: the end-of-sequence id tells documents apart.
    """
    (index,) = beside(path, "litdata")
    try:
        config = json.loads(index.read_text(encoding="utf-8"))["config"]
        serializer, _, code = str(config["data_format"][0]).partition(":")
        packed = config.get("compression") or config.get("encryption")
        kind = _LITDATA_TYPES.get(serializer, {}).get(int(code or -1))
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(f"{where}: {index.name} is no index of litdata ({error}); make it again") from error
    if packed:
        raise DataError(f"{where}: {index.name} says {packed}; expected plain chunks; optimize() without compression")
    if kind is None:
        raise DataError(
            f"{where}: {index.name} says {config['data_format']}; expected bare integers, as optimize() writes them "
            "with item_loader=TokensLoader(); write it so"
        )
    head = np.fromfile(path, "<u4", 1)
    start, size = 4 * (int(head[0]) + 2) if len(head) else 0, path.stat().st_size
    width = np.dtype(kind).itemsize
    if start < 8 or start > size or (size - start) % width:
        raise DataError(f"{where}: {size} bytes are no chunk of {kind}; expected a header and ids; copy it again")
    if size == start:
        return TokenFile(np.zeros(0, kind), None)
    return TokenFile(np.memmap(path, dtype=kind, mode="r", offset=start), None)


def _check_length(tokens: npt.NDArray[Any], expected: int, index: Path, where: str) -> None:
    if len(tokens) != expected:
        raise DataError(
            f"{where}: {len(tokens)} tokens; expected {expected}, as {index.name} says; copy both files again"
        )
