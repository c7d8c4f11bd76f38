"""Corpora that are tokenised already, in the layouts of megatron-core's `IndexedDatasetBuilder` and datatrove's `TokenizedFile`."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.data.inspect.survey import survey
from opmix.data.sources import iter_token_documents, resolve, source_fingerprint
from opmix.data.token_files import open_tokens
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
    ("litdata", "uint16"),
    ("litdata", "int32"),
]
LITDATA_CODES = {"uint16": 20, "int32": 15}


def write(folder: Path, kind: SourceFormat, dtype: str, documents: list[list[int]], *, pieces: int = 1) -> Path:
    """A corpus, each document ended by EOS; Megatron's documents are of so many sequences."""
    ids = [[*document, EOS] for document in documents]
    if kind == "litdata":
        return write_litdata(folder, dtype, ids)
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


def write_litdata(folder: Path, dtype: str, ids: list[list[int]], **config: object) -> Path:
    """A chunk of litdata's `TokensLoader`: number of items, their places in bytes, the ids."""
    lengths = np.array([len(item) for item in ids]) * np.dtype(dtype).itemsize
    places = 4 * (len(ids) + 2) + np.cumsum([0, *lengths])
    path = folder / "chunk-0-0.bin"
    head = np.array([len(ids), *places], dtype="<u4")
    path.write_bytes(head.tobytes() + np.concatenate(ids).astype(dtype).tobytes())
    about = {"compression": None, "data_format": [f"no_header_tensor:{LITDATA_CODES[dtype]}"], **config}
    (folder / "index.json").write_text(json.dumps({"chunks": [], "config": about}))
    return path


def read(path: Path, kind: SourceFormat) -> list[list[int]]:
    return [d.tolist() for d in iter_token_documents(Source(paths=(str(path),), format=kind), EOS)]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
class TestReading:
    @settings(deadline=None, max_examples=12)
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

    def test_a_folder_is_its_files_of_tokens(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        path = write(tmp_path, kind, dtype, [[1, 2], [3]])
        assert [file.path for file in resolve(Source(paths=(str(tmp_path),), format=kind))] == [str(path)]

    @settings(deadline=None, max_examples=12)
    @given(documents=DOCUMENTS, draw=st.data())
    def test_document_starts_are_found_anywhere(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        kind: SourceFormat,
        dtype: str,
        documents: list[list[int]],
        draw: st.DataObject,
    ) -> None:
        path = write(tmp_path_factory.mktemp("x"), kind, dtype, documents, pieces=draw.draw(st.integers(1, 3)))
        starts = np.cumsum([0, *(len(d) + 1 for d in documents)])
        first = draw.draw(st.integers(0, int(starts[-1]) - 1))
        last = draw.draw(st.integers(first, int(starts[-1])))
        found = open_tokens(path, kind, "", "web").starts(first, last, EOS)
        assert found.tolist() == [s for s in starts[:-1].tolist() if first <= s < last]

    def test_the_index_is_part_of_what_is_read(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        source = Source(paths=(str(write(tmp_path, kind, dtype, [[1, 2], [3, 4]])),), format=kind)
        before = source_fingerprint(source)
        write(tmp_path, kind, dtype, [[1], [3, 4]])
        assert source_fingerprint(source) != before

    def test_files_that_do_not_fit(self, tmp_path: Path, kind: SourceFormat, dtype: str) -> None:
        path = write(tmp_path, kind, dtype, [[1, 2], [3, 4]])
        if kind == "litdata":  # its index counts only what it wrote into other chunks, too
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(path.read_bytes()[: -np.dtype(dtype).itemsize])
        with pytest.raises(DataError, match=r"tokens|no chunk"):
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


def test_chunks_of_litdata_that_are_no_bare_ids(tmp_path: Path) -> None:
    path = write_litdata(tmp_path, "uint16", [[1, 2]], compression="zstd")
    with pytest.raises(DataError, match="says zstd; expected plain chunks"):
        read(path, "litdata")
    write_litdata(tmp_path, "uint16", [[1, 2]], data_format=["str", "int"])
    with pytest.raises(DataError, match="expected bare integers"):
        read(path, "litdata")
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(DataError, match="no index of litdata"):
        read(path, "litdata")


def test_a_megatron_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, "megatron", "uint16", [[1, 2], [3]])
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:-8] + (99).to_bytes(8, "little"))
    with pytest.raises(DataError, match="names sequences that are not there"):
        read(path, "megatron")


@pytest.mark.parametrize("ends", [[7 << 56, 8], [6, 2, 8], [-1, 8]])
def test_an_index_of_datatrove_that_ends_documents_nowhere(tmp_path: Path, ends: list[int]) -> None:
    """Found by coverage-guided fuzzing (benchmarks/torture/guided.py)."""
    path = write(tmp_path, "datatrove", "uint16", [[5, 6, 7], [8, 9, 10]])
    path.with_name(f"{path.name}.index").write_bytes(np.array(ends, "<i8").tobytes())
    with pytest.raises(DataError, match=r"web\.ds.*its index ends a document at token"):
        list(iter_token_documents(Source(paths=(str(path),), format="datatrove"), EOS))
