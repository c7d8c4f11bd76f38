"""Token ids in trainers' own layouts, which `token_files` reads back where opmix reads them too."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]

_CHUNK = 1 << 24
"""Tokens of a file where a format has many: offsets of four bytes end at 4 GiB."""


@dataclass(frozen=True, kw_only=True)
class TokenFormat:
    """How a trainer wants token ids."""

    place: str
    """What the trainer is told, below the domain's own folder; empty: the folder."""
    write: Callable[[Path, Iterable[Ids], str, int], None]
    """Folder, documents (each with its end-of-sequence id), NumPy type of an id, tokens of a sequence."""


def _megatron(folder: Path, documents: Iterable[Ids], dtype: str, length: int) -> None:
    """`indexed_dataset.py` of megatron-core: one sequence a document."""
    kind = np.dtype("<u2" if dtype == "<u2" else "<i4")
    lengths = _appended(folder / "text_document.bin", documents, kind)
    places = (np.cumsum(lengths, dtype="<i8") - lengths) * kind.itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8 if kind.itemsize == 2 else 4, len(lengths), len(lengths) + 1)
    parts = (lengths.astype("<i4"), places.astype("<i8"), np.arange(len(lengths) + 1, dtype="<i8"))
    (folder / "text_document.idx").write_bytes(head + b"".join(part.tobytes() for part in parts))


def _raw(folder: Path, documents: Iterable[Ids], dtype: str, length: int) -> None:
    """Bare ids under the name that `dolma tokens` gives them."""
    _appended(folder / "part-0-00000.npy", documents, np.dtype(dtype))


def _datatrove(folder: Path, documents: Iterable[Ids], dtype: str, length: int) -> None:
    """`TokenizedFile` of datatrove: ids, document ends, and a line each of tokenizer and width, count, and the count for people."""
    lengths = _appended(folder / "00000.ds", documents, np.dtype(dtype))
    (folder / "00000.ds.index").write_bytes(np.cumsum(lengths).astype("<u8").tobytes())
    total, width = int(lengths.sum()), np.dtype(dtype).itemsize
    (folder / "00000.ds.metadata").write_text(f"opmix|{width}\n{total}\n{total:,}", encoding="utf-8")


def _litdata(folder: Path, documents: Iterable[Ids], dtype: str, length: int) -> None:
    """Chunks for litdata's `TokensLoader`: number of items, their places in bytes, ids; and `index.json`."""
    kind, chunks = np.dtype("<u2" if dtype == "<u2" else "<i4"), []
    for number, items in enumerate(_chunked(documents, _CHUNK)):
        sizes = np.array([len(item) for item in items]) * kind.itemsize
        places = 4 * (len(items) + 2) + np.cumsum([0, *sizes])
        name = f"chunk-0-{number}.bin"
        content = np.array([len(items), *places], dtype="<u4").tobytes() + np.concatenate(items).astype(kind).tobytes()
        (folder / name).write_bytes(content)
        size = {"chunk_bytes": len(content), "chunk_size": len(items), "dim": int(sizes.sum()) // kind.itemsize}
        chunks.append({**size, "filename": name})
    about = {
        "chunk_bytes": None,
        "chunk_size": _CHUNK,
        "compression": None,
        "data_format": [f"no_header_tensor:{20 if kind.itemsize == 2 else 15}"],
        "data_spec": json.dumps([1, {"type": None, "context": None, "children_spec": []}]),
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": about}), encoding="utf-8")


def _mds(folder: Path, documents: Iterable[Ids], dtype: str, length: int) -> None:
    """MDS shards of mosaicml-streaming: one column `tokens` of whole sequences; what is left over at the end is dropped."""
    about: dict[str, Any] = {
        "column_encodings": [f"ndarray:int32:{length}"],
        "column_names": ["tokens"],
        "column_sizes": [4 * length],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 4 * _CHUNK,
        "version": 2,
        "zip_data": None,
    }
    config, shards = json.dumps(about, sort_keys=True).encode(), []
    for number, items in enumerate(_chunked(_sequences(documents, length), _CHUNK)):
        places = 4 * (len(items) + 2) + len(config) + np.arange(len(items) + 1) * 4 * length
        name = f"shard.{number:05}.mds"
        head = np.array([len(items), *places], dtype="<u4").tobytes() + config
        (folder / name).write_bytes(head + np.concatenate(items).astype("<i4").tobytes())
        raw = {"basename": name, "bytes": (folder / name).stat().st_size, "hashes": {}}
        shards.append({**about, "raw_data": raw, "samples": len(items)})
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}), encoding="utf-8")


def _appended(path: Path, documents: Iterable[Ids], kind: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """Documents end to end; their lengths, (n,)."""
    lengths: list[int] = []
    with path.open("wb") as file:
        for ids in documents:
            file.write(ids.astype(kind).tobytes())
            lengths.append(len(ids))
    return np.array(lengths, dtype=np.int64)


def _chunked(items: Iterable[Ids], tokens: int) -> Iterator[list[Ids]]:
    """Items in lists of at most so many tokens, or of one longer one."""
    chunk: list[Ids] = []
    size = 0
    for item in items:
        if chunk and size + len(item) > tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item)
    if chunk:
        yield chunk


def _sequences(documents: Iterable[Ids], length: int) -> Iterator[Ids]:
    """Documents end to end, cut."""
    left: Ids = np.zeros(0, dtype=np.int64)
    for ids in documents:
        left = np.concatenate([left, ids])
        whole = len(left) // length * length
        yield from np.split(left[:whole], whole // length) if whole else ()
        left = left[whole:]


_MEGATRON = TokenFormat(place="text_document", write=_megatron)
_MDS = TokenFormat(place="", write=_mds)
TOKEN_WRITERS: dict[str, TokenFormat] = {
    "megatron": _MEGATRON,
    "nemo": _MEGATRON,
    "olmo-core": TokenFormat(place="*.npy", write=_raw),
    "nanotron": TokenFormat(place="", write=_datatrove),
    "litdata": TokenFormat(place="", write=_litdata),
    "streaming": _MDS,
    "llm-foundry": _MDS,
}
"""By the name of the exporter; all others read rows of text or conversations."""
