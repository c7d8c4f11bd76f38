"""Corpora that are tokenised already, in the layouts of megatron-core's `IndexedDatasetBuilder` and datatrove's `TokenizedFile`."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.data.inspect.survey import survey
from opmix.data.sources import iter_token_documents, resolve, source_fingerprint
from opmix.domain import Source, SourceFormat
from opmix.errors import DataError

EOS = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 60_000), min_size=1, max_size=9), min_size=1, max_size=9)
CODES = {"uint16": 8, "int32": 4}
KINDS: list[tuple[SourceFormat, str]] = [
    ("megatron", "uint16"),
    ("megatron", "int32"),
    ("datatrove", "uint16"),
    ("datatrove", "uint32"),
]


def write(folder: Path, kind: SourceFormat, dtype: str, documents: list[list[int]], *, pieces: int = 1) -> Path:
    """A corpus, each document ended by EOS; Megatron's documents are of so many sequences."""
    ids = [[*document, EOS] for document in documents]
    path = folder / ("web.bin" if kind == "megatron" else "web.ds")
    np.concatenate(ids).astype(dtype).tofile(path)
    if kind == "datatrove":
        np.cumsum([len(d) for d in ids]).astype("<u8").tofile(folder / "web.ds.index")
        return path
    cut = [[part for part in np.array_split(d, pieces) if len(part)] for d in ids]
    lengths = np.array([len(part) for parts in cut for part in parts], dtype="<i4")
    places = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(dtype).itemsize
    ends = np.cumsum([0, *map(len, cut)]).astype("<i8")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], len(lengths), len(ends))
    (folder / "web.idx").write_bytes(head + lengths.tobytes() + places.astype("<i8").tobytes() + ends.tobytes())
    return path


def read(path: Path, kind: SourceFormat) -> list[list[int]]:
    return [d.tolist() for d in iter_token_documents(Source(paths=(str(path),), format=kind), EOS)]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
class TestReading:
    @settings(deadline=None, max_examples=25)
    @given(documents=DOCUMENTS, pieces=st.integers(1, 3))
    def test_documents_come_back(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        kind: SourceFormat,
        dtype: str,
        documents: list[list[int]],
        pieces: int,
    ) -> None:
        path = write(tmp_path_factory.mktemp("x"), kind, dtype, documents, pieces=pieces)
        assert read(path, kind) == documents

    def test_tokens_are_counted_exactly(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        path = write(tmp_path, kind, dtype, [[1, 2], [3]])
        size = survey(Source(paths=(str(path),), format=kind), domain="web")
        assert size is not None
        assert size.tokens == 5

    def test_the_index_is_part_of_what_is_read(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        source = Source(paths=(str(write(tmp_path, kind, dtype, [[1, 2], [3, 4]])),), format=kind)
        before = source_fingerprint(source)
        write(tmp_path, kind, dtype, [[1], [3, 4]])
        assert source_fingerprint(source) != before

    def test_files_that_do_not_fit(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        path = write(tmp_path, kind, dtype, [[1, 2], [3, 4]])
        path.write_bytes(path.read_bytes()[: -np.dtype(dtype).itemsize])
        with pytest.raises(DataError, match="tokens"):
            read(path, kind)

    def test_no_index(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        path = write(tmp_path, kind, dtype, [[1, 2]])
        next(p for p in tmp_path.iterdir() if p != path).unlink()
        with pytest.raises(DataError, match="no index beside it"):
            read(path, kind)


def test_either_file_of_megatron_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "megatron", "uint16", [[1, 2], [3]])
    found = resolve(Source(paths=(str(path.with_suffix(".idx")), str(path)), format="megatron"))
    assert [file.path for file in found] == [str(path)]


def test_no_megatron_index(tmp_path: Path) -> None:
    path = write(tmp_path, "megatron", "uint16", [[1, 2], [3]])
    path.with_suffix(".idx").write_bytes(b"something else altogether, and long enough")
    with pytest.raises(DataError, match="no Megatron index"):
        read(path, "megatron")
