import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from opmix.data.inspect import samples
from opmix.data.inspect.samples import read_head, read_rows
from opmix.data.inspect.schema import schema_of
from opmix.data.inspect.survey import survey
from opmix.data.sources import iter_documents
from opmix.domain import Source
from opmix.errors import DataError

from .conftest import texts, write_rows


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file much larger than what is looked at."""
    monkeypatch.setattr(samples, "HEAD_BYTES", 1 << 16)
    monkeypatch.setattr(samples.read_head, "__defaults__", (1 << 16,))
    monkeypatch.setattr(samples, "_CHUNK", 1 << 12)
    rows = texts("alpha", 4000)
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "a.jsonl.gz", rows)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"text": [row["text"] for row in rows]}), tmp_path / "a.parquet")
    return tmp_path, rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_sizes_are_estimated_from_the_start_of_a_file(large, name):
    folder, rows = large
    size = survey(Source(paths=(str(folder / name),)), domain="a")
    text_bytes = sum(len(row["text"]) for row in rows)
    near = 0.25 if name.endswith("zst") else 0.1  # a block of zstd is large beside this small head
    assert size is not None
    assert size.documents == pytest.approx(len(rows), rel=near)
    assert size.text_bytes == pytest.approx(text_bytes, rel=near)
    assert size.tokens == pytest.approx(text_bytes / 4 + len(rows), rel=near)
    assert size.exact == (name == "a.parquet")


def test_a_small_file_is_counted_exactly_and_tokens_with_the_tokenizer(tmp_path):
    from opmix.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    file = write_rows(tmp_path / "a.jsonl.gz", texts("alpha", 50))
    size = survey(Source(paths=(str(file),)), domain="a", tokenizer=tokenizer)
    documents = list(iter_documents(Source(paths=(str(file),))))
    true = sum(len(ids) + 1 for ids in tokenizer(documents, add_special_tokens=False)["input_ids"])
    assert size is not None
    assert (size.documents, size.exact) == (50, True)
    assert size.text_bytes == sum(map(len, documents))
    assert size.tokens == pytest.approx(true, rel=0.01)


def test_many_files_are_sampled(tmp_path):
    for i in range(40):
        write_rows(tmp_path / f"{i:02d}.jsonl", texts("alpha", 5, seed=i))
    size = survey(Source(paths=(str(tmp_path / "*.jsonl"),)), domain="a")
    assert size is not None
    assert size.files == 40
    assert size.documents == pytest.approx(200, rel=0.2)
    assert not size.exact


def test_token_files_are_counted(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1000, dtype=np.uint16))
    size = survey(Source(paths=(str(tmp_path / "a.npy"),)), domain="a")
    assert size is not None
    assert size.tokens == 1000


def test_damaged_files_are_told(tmp_path):
    whole = gzip.compress(json.dumps({"text": "word " * 5000}).encode())
    for name, content in {
        "cut.jsonl.gz": whole[:-20],
        "no.jsonl.gz": b"plain text",
        "no.jsonl.zst": b"plain text",
        "cut.parquet": b"PAR1",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=name.partition(".")[0]):
            read_rows(path, "parquet" if name.endswith("parquet") else "jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_head(tmp_path / "none.txt")


def test_gzip_of_several_members_and_a_bom(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "one"}\n') + gzip.compress(b'\n{"text": "two"}\n'))
    found = read_rows(path, "jsonl")
    assert [row["text"] for row in found.rows] == ["one", "two"]
    assert (found.total, found.exact) == (2, True)


def test_a_first_line_longer_than_the_head(tmp_path, monkeypatch):
    monkeypatch.setattr(samples.read_head, "__defaults__", (100,))
    path = write_rows(tmp_path / "a.jsonl", [{"text": "word " * 100}, {"text": "x"}])
    assert len(read_rows(path, "jsonl").rows) == 2


@pytest.mark.parametrize(
    ("rows", "kind", "field"),
    [
        ([{"text": "a", "id": "b"}], "text", "text"),
        ([{"title": "short", "story": "a much longer text"}], "text", "story"),
        ([{"meta": {"x": 1}, "n": 3}], "none", ""),
        ([], "none", ""),
        ([{"text": "a"}, {"text": None}], "none", ""),
        ([{"messages": [{"role": "user", "content": "x"}], "id": "a"}], "chat", "messages"),
        ([{"conversations": [{"from": "human", "value": "x"}]}], "chat", "conversations"),
        ([{"prompt": "a", "completion": "b"}], "chat", "prompt and completion"),
        ([{"messages": [], "body": "b"}], "text", "body"),
    ],
)
def test_schemas(rows, kind, field):
    schema = schema_of(rows)
    assert (schema.kind, schema.field) == (kind, field)
