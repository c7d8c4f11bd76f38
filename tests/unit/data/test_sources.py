"""Every format is read in full and in order; what cannot be read says which file, where, and what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from opmix.data import readers
from opmix.data.sources import iter_documents, iter_token_documents, resolve, source_fingerprint
from opmix.domain import Source
from opmix.errors import DataError

TEXTS = ["first", "zweites é", "三"]


def source(*paths: Path | str, **options: str) -> Source:
    return Source(paths=tuple(map(str, paths)), **options)  # type: ignore[arg-type]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def read(*paths: Path | str, **options: str) -> list[str]:
    return list(iter_documents(source(*paths, **options)))


def refused(message: str, *paths: Path | str, domain: str | None = "web", **options: str) -> None:
    with pytest.raises(DataError, match=message):
        list(iter_documents(source(*paths, **options), domain=domain))


class TestFormats:
    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".ndjson"])
    def test_json_lines(self, tmp_path: Path, suffix: str) -> None:
        path, data = tmp_path / f"data{suffix}", lines(TEXTS)
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(data))
        assert read(path) == TEXTS

    def test_json_lines_with_bom_blank_lines_and_no_last_newline(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + lines(TEXTS).replace(b"\n", b"\r\n\n").rstrip())
        assert read(path) == TEXTS

    def test_empty_documents_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_bytes(lines(["", *TEXTS, ""]))
        assert read(path) == TEXTS

    def test_zstd_of_several_frames_and_blocks(self, tmp_path: Path) -> None:
        texts = [f"{i} " * 400 for i in range(3000)]
        path = tmp_path / "data.jsonl.zst"
        path.write_bytes(zstandard.compress(lines(texts[:1500])) + zstandard.compress(lines(texts[1500:])))
        assert read(path) == texts

    def test_a_text_file_is_a_document(self, tmp_path: Path) -> None:
        for name, text in zip("cab", TEXTS, strict=True):
            (tmp_path / f"{name}.txt").write_bytes(text.encode())
        assert read(tmp_path / "*.txt") == [TEXTS[1], TEXTS[2], TEXTS[0]]

    def test_any_suffix_as_text_when_told(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.py").write_text("x = 1\r\n", newline="")
        assert read(tmp_path / "**/*.py", format="text") == ["x = 1\r\n"]

    def test_parquet(self, tmp_path: Path) -> None:
        texts = [f"row {i}" for i in range(2500)]
        pq.write_table(pa.table({"body": texts, "other": range(2500)}), tmp_path / "a.parquet", row_group_size=700)
        assert read(tmp_path / "a.parquet", field="body") == texts

    def test_arrow_folder_and_its_splits(self, tmp_path: Path) -> None:
        one = datasets.Dataset.from_dict({"text": TEXTS})
        one.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"a": one, "b": one.select([1])}).save_to_disk(tmp_path / "two")
        assert read(tmp_path / "one") == TEXTS
        assert read(tmp_path / "two", split="b") == [TEXTS[1]]
        refused(r"split None; expected one of \['a', 'b'\]", tmp_path / "two")

    def test_local_folder_as_hub_name(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").write_bytes(lines(TEXTS))
        assert read(tmp_path, format="hub") == TEXTS
        refused("no column 'body'.*'text'", tmp_path, format="hub", field="body")

    def test_a_folder_is_its_known_files(self, tmp_path: Path) -> None:
        (tmp_path / "b.jsonl").write_bytes(lines(TEXTS[:2]))
        (tmp_path / "a.txt").write_text(TEXTS[2], encoding="utf-8")
        (tmp_path / "README.rst").write_text("not data")
        (tmp_path / ".hidden.txt").write_text("not data")
        assert read(tmp_path) == [TEXTS[2], *TEXTS[:2]]
        assert read(tmp_path, format="jsonl") == TEXTS[:2]


class TestTokens:
    @pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32"])
    def test_documents_end_at_eos(self, tmp_path: Path, dtype: str) -> None:
        ids = np.array([5, 6, 0, 0, 7, 0, 8], dtype=dtype)
        np.save(tmp_path / "a.npy", ids)
        ids.tofile(tmp_path / "a.bin")
        for path in (tmp_path / "a.npy", tmp_path / "a.bin"):
            found = list(iter_token_documents(source(path, dtype=dtype), 0))
            assert [document.tolist() for document in found] == [[5, 6], [7], [8]]

    def test_a_document_may_span_blocks(self, tmp_path: Path) -> None:
        ids = np.ones((1 << 20) + 5, dtype=np.uint16)
        ids[[2, -2]] = 0
        np.save(tmp_path / "a.npy", ids)
        found = list(iter_token_documents(source(tmp_path / "a.npy"), 0))
        assert [len(document) for document in found] == [2, (1 << 20), 1]

    def test_errors(self, tmp_path: Path) -> None:
        np.save(tmp_path / "float.npy", np.ones(3))
        (tmp_path / "odd.bin").write_bytes(b"abc")
        (tmp_path / "a.txt").write_text("text")
        for name, message in (
            ("float.npy", "integer token ids"),
            ("odd.bin", "3 bytes"),
            ("a.txt", "holds text"),
        ):
            with pytest.raises(DataError, match=message):
                list(iter_token_documents(source(tmp_path / name), 0))
        refused("holds token ids", tmp_path / "odd.bin")
        with pytest.raises(DataError, match="text and token ids in one source"):
            resolve(source(tmp_path / "a.txt", tmp_path / "odd.bin"))


class TestErrors:
    """Each names the domain, the file and the place."""

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"text": "cut', "not JSON"),
            (b'["a", "b"]', "a JSON list"),
            (b'{"body": "x", "id": 1}', "no key 'text' .it has 'body', 'id'.; set the source's `field`"),
            (b'{"text": null}', "'text' is null"),
            (b'{"text": 3}', "'text' is int"),
            (b'{"text": "\\ud800"}', "surrogate"),
            (b'{"text": "\xff"}', "not UTF-8"),
        ],
    )
    def test_bad_line(self, tmp_path: Path, line: bytes, message: str) -> None:
        path = tmp_path / "data.jsonl"
        path.write_bytes(lines(["fine"]) + line + b"\n")
        refused(f"domain 'web': {re.escape(str(path))}:2: .*{message}", path)

    def test_json_arrays_are_read_whole(self, tmp_path: Path) -> None:
        for text in ('[\n {"text": "x"},\n {"text": "y"}\n]', '[{"text": "x"}, {"text": "y"}]'):
            (tmp_path / "a.json").write_text(text)
            assert list(iter_documents(source(tmp_path / "a.json"))) == ["x", "y"]
        (tmp_path / "a.json").write_text('[{"text": "x"},')
        refused("not JSON.*repair the array, or write one object a line", tmp_path / "a.json")
        (tmp_path / "a.json").write_text('[{"text": "x"}, 3]')
        refused("a.json: item 2: a JSON int", tmp_path / "a.json")

    def test_a_line_without_end_is_refused_before_it_is_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(readers, "LONGEST_LINE", 1000)
        monkeypatch.setattr(readers, "LONGEST_FILE", 2000)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["x"]) + b"0" * 5000))
        refused("a.jsonl.gz:2: a line of more than", tmp_path / "a.jsonl.gz")
        (tmp_path / "a.txt").write_text("x" * 3000)
        refused("in one piece", tmp_path / "a.txt")

    def test_a_pipe_is_refused_instead_of_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.jsonl")
        refused("a pipe or device; expected a regular file", tmp_path / "a.jsonl")

    def test_a_raw_token_file_named_npy_says_how_to_read_it(self, tmp_path: Path) -> None:
        np.arange(1, 500, dtype=np.uint16).tofile(tmp_path / "part-0.npy")
        with pytest.raises(DataError, match=r"no NumPy header.*`format: bin`"):
            list(iter_token_documents(source(tmp_path / "part-0.npy"), 0))

    @pytest.mark.parametrize(
        ("old", "new"), [(b"False", b"(null"), (b"'shape'", b"\n\t  'x'"), (b"(64,)", b"(64, "), (b"<u2", b"<u9")]
    )
    def test_a_numpy_header_that_is_no_python_is_damage(self, tmp_path: Path, old: bytes, new: bytes) -> None:
        """Found by fuzzing: numpy reads its header with Python's own tokenizer and raises whatever that raises."""
        np.save(tmp_path / "a.npy", np.arange(64, dtype=np.uint16))
        content = (tmp_path / "a.npy").read_bytes()
        assert old in content
        (tmp_path / "a.npy").write_bytes(content.replace(old, new.ljust(len(old))))
        with pytest.raises(DataError, match="token ids cannot be read"):
            list(iter_token_documents(source(tmp_path / "a.npy"), 0))

    @pytest.mark.parametrize("held", ["valid.jsonl", "dev.jsonl", "test-00.jsonl", "validation_1.jsonl"])
    def test_a_folder_that_holds_its_own_held_out_file_is_refused(self, tmp_path: Path, held: str) -> None:
        for name in ("train.jsonl", held):
            (tmp_path / name).write_bytes(lines(["x"]))
        refused(f"held-out files beside training files .{held} beside train.jsonl", tmp_path)
        (tmp_path / held).rename(tmp_path / "testimony.jsonl")
        assert len(list(iter_documents(source(tmp_path)))) == 2

    @pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
    def test_truncated_archive_is_not_taken_for_whole(self, tmp_path: Path, pack: object) -> None:
        data = lines([np.random.default_rng(0).bytes(400_000).hex()])
        whole = pack(data)  # type: ignore[operator]
        path = tmp_path / ("data.jsonl.gz" if pack is gzip.compress else "data.jsonl.zst")
        path.write_bytes(whole[: len(whole) // 2])
        refused("cannot be read.*EOFError", path)

    def test_damaged_files(self, tmp_path: Path) -> None:
        for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.npy"):
            (tmp_path / name).write_bytes(b"this is none of these")
        for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
            refused("cannot be read", tmp_path / name)
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY and nothing else")
        with pytest.raises(DataError, match="cannot be read"):
            list(iter_token_documents(source(tmp_path / "a.npy"), 0))

    def test_parquet_rows(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"text": ["a", None], "n": [1, 2]}), tmp_path / "a.parquet")
        refused("row 2: column 'text' is null", tmp_path / "a.parquet")
        refused("row 1: column 'n' is int", tmp_path / "a.parquet", field="n")
        refused("no column 'body' .it has 'text', 'n'", tmp_path / "a.parquet", field="body")

    def test_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
        refused("not UTF-8 .byte 0.*iconv", tmp_path / "latin.txt")

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").write_text("x")
        refused("no such file or folder", tmp_path / "gone.jsonl")
        refused("matches no file", tmp_path / "*.jsonl")
        refused("unknown kind of file", tmp_path / "a.pdf")
        refused("none of the folder's 1 files is of a known kind", tmp_path)
        refused(r"^/|^\w", tmp_path / "gone.jsonl", domain=None)

    def test_hub_offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refused(
            "domain 'web': no-such-org/none: the dataset cannot be opened.*network",
            "no-such-org/none",
            format="hub",
        )


class TestResolveAndFingerprint:
    def test_glob_is_sorted_and_files_count_once(self, tmp_path: Path) -> None:
        for name in ("b", "a", "c"):
            (tmp_path / f"{name}.jsonl").write_bytes(lines([name]))
        found = resolve(source(tmp_path / "c.jsonl", tmp_path / "*.jsonl"))
        assert [Path(file.path).name for file in found] == ["c.jsonl", "a.jsonl", "b.jsonl"]
        assert {file.format for file in found} == {"jsonl"}

    def test_brackets_in_a_file_name_are_no_pattern(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].jsonl").write_bytes(lines(["x"]))
        assert read(tmp_path / "a[1].jsonl") == ["x"]

    def test_fingerprint_is_of_the_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(lines(["one", "two"]))
        before = source_fingerprint(source(path))
        path.write_bytes(lines(["one", "twp"]))
        changed = source_fingerprint(source(path))
        path.write_bytes(lines(["one", "two"]))
        assert before != changed
        assert source_fingerprint(source(path)) == before
        path.rename(tmp_path / "b.jsonl")
        assert source_fingerprint(source(tmp_path / "b.jsonl")) == before

    def test_fingerprint_counts_order_format_and_cuts_between_files(self, tmp_path: Path) -> None:
        for name, data in (("a", "1\n2\n"), ("b", "3\n"), ("c", "1\n"), ("d", "2\n3\n")):
            (tmp_path / f"{name}.txt").write_text(data)
        pairs = [("a", "b"), ("b", "a"), ("c", "d")]
        prints = {source_fingerprint(source(*(tmp_path / f"{n}.txt" for n in pair))) for pair in pairs}
        as_json = source_fingerprint(source(tmp_path / "a.txt", tmp_path / "b.txt", format="jsonl"))
        assert len(prints | {as_json}) == 4

    def test_fingerprint_of_hub_names_counts_revision_and_split(self) -> None:
        variants = [{}, {"split": "validation"}, {"config_name": "en"}]
        prints = {source_fingerprint(source("org/name", format="hub", **options)) for options in variants}
        prints.add(source_fingerprint(source("org/name@abc", format="hub")))
        assert len(prints) == 4


@pytest.mark.parametrize(("form", "what"), [("parquet", "text"), ("parquet", "name"), ("arrow", "text")])
def test_tables_that_are_not_utf8_are_named(tmp_path, form, what):
    """Arrow does not look at the bytes of a string; found by `benchmarks/torture` (fuzz, seed 20788)."""
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32))
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xe5x" if what == "text" else b"okay")]
    )
    place = tmp_path / "bad.parquet"
    if form == "parquet":
        pq.write_table(pa.table({"text": texts, "name": texts}), place)
        if what == "name":
            place.write_bytes(place.read_bytes().replace(b"name", b"n\xe5me"))
    else:
        place = tmp_path / "bad"
        datasets.Dataset(pa.table({"text": texts})).save_to_disk(str(place))
    with pytest.raises(DataError, match=r"not UTF-8|cannot be read"):
        list(iter_documents(Source(paths=(str(place),))))
