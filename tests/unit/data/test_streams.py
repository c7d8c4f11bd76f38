"""Files at URLs and datasets of the hub: streamed as far as is wanted, kept as they come, and read on after a stop."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from opmix.data import prepare_domain, streams
from opmix.data.readers import TextField
from opmix.data.sources import iter_documents, resolve, source_fingerprint
from opmix.data.streams import read_stream
from opmix.domain import Domain, Source
from opmix.errors import ConfigError, DataError
from opmix.testing import tiny_tokenizer

TEXTS = [f"text {i} of many,\u2028 and\x85 some\x0b more words to it" for i in range(300)]
"""With ends of lines that are none to JSON."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (made / "web.jsonl").write_text(rows)
    (made / "web.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    chats = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "yes"}]} for t in TEXTS]
    (made / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    return made


@pytest.fixture(scope="module")
def site(folder: Path) -> str:
    return folder.as_uri()


def test_over_http(folder: Path) -> None:
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/web.jsonl.gz"
        assert list(iter_documents(Source(paths=(address,)))) == TEXTS
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["web.jsonl", "web.jsonl.gz"])
def test_files_at_urls_are_streamed_and_cached(site: str, name: str, tmp_path: Path) -> None:
    source = Source(paths=(f"{site}/{name}",)).located(Path("/elsewhere"))
    assert list(iter_documents(source)) == TEXTS
    made = prepare_domain(Domain(name="web", train=source), tiny_tokenizer(), cache_dir=tmp_path)
    assert made.train.num_documents + made.valid.num_documents + made.test.num_documents == len(TEXTS)
    assert not list(tmp_path.glob("stream-*"))


def test_conversations_at_urls(site: str, tmp_path: Path) -> None:
    from opmix.data import domain_kind

    assert domain_kind(Domain(name="web", train=Source(paths=(f"{site}/chats.jsonl",)))) == "chat"


def test_the_bound_is_kept(site: str, tmp_path: Path) -> None:
    source = Source(paths=(f"{site}/web.jsonl",), max_tokens=2000)
    made = prepare_domain(Domain(name="web", train=source, holdout=0.2), tiny_tokenizer(), cache_dir=tmp_path)
    total = made.train.num_tokens + made.valid.num_tokens + made.test.num_tokens
    assert 2000 <= total < 2100


class Counting:
    """A stream that counts its rows and knows its place, as those of `datasets` do; it may break at some row."""

    column_names = ("text",)

    def __init__(self, breaks: int | None = None) -> None:
        self.breaks, self.at, self.read = breaks, 0, 0

    def select_columns(self, columns: list[str]) -> Counting:
        assert columns == ["text"]
        return self

    def __iter__(self) -> Iterator[dict[str, str]]:
        while self.at < len(TEXTS):
            if self.at == self.breaks:
                raise ConnectionError("gone")
            self.at += 1
            self.read += 1
            yield {"text": TEXTS[self.at - 1]}

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class TestGoingOn:
    @pytest.fixture(autouse=True)
    def short_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "_PART", 16)

    def read(self, keep: Path, stream: Counting, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.setattr(streams, "_opened", lambda *_: stream)
        source = Source(paths=("org/name",), format="hub")
        return list(read_stream("org/name", source, TextField("text"), "domain 'web': org/name", keep))

    @pytest.mark.parametrize("breaks", [0, 1, 15, 16, 17, 100, 299])
    def test_what_is_there_is_kept(self, tmp_path: Path, breaks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match=r"gone.*the same command goes on"):
            self.read(tmp_path, Counting(breaks), monkeypatch)
        again = Counting()
        assert self.read(tmp_path, again, monkeypatch) == TEXTS
        assert again.read == len(TEXTS) - breaks // 16 * 16

    def test_a_damaged_part_is_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read(tmp_path, Counting(), monkeypatch)
        part = sorted(tmp_path.rglob("part-*.gz"))[2]
        part.write_bytes(part.read_bytes()[:40])
        again = Counting()
        assert self.read(tmp_path, again, monkeypatch) == TEXTS
        assert again.read == len(TEXTS) - 32

    def test_the_streams_of_datasets_go_on(self, site: str, tmp_path: Path) -> None:
        source = Source(paths=(f"{site}/web.jsonl",))
        documents = iter_documents(source, keep=tmp_path)
        assert [next(documents) for _ in range(40)] == TEXTS[:40]
        documents.close()
        assert len(list(tmp_path.rglob("part-*.gz"))) == 2
        assert list(iter_documents(source, keep=tmp_path)) == TEXTS


def test_what_no_stream_can_be(site: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="a URL beside files"):
        resolve(Source(paths=(f"{site}/web.jsonl", str(tmp_path / "a.jsonl"))))
    with pytest.raises(DataError, match="or of token ids"):
        resolve(Source(paths=(f"{site}/web.bin",), format="bin"))
    with pytest.raises(DataError, match="the kind of file cannot be told"):
        list(iter_documents(Source(paths=(f"{site}/web",))))
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        list(iter_documents(Source(paths=(f"{site}/gone.jsonl",))))


@pytest.mark.parametrize(
    "path",
    [
        "https://me:hidden@example.org/a.jsonl",
        "https://example.org/a.jsonl?X-Amz-Date=1&X-Amz-Signature=ab",
        "https://example.org/a.jsonl?sig=",
        "s3://bucket/a.jsonl?access_token=ab",
    ],
)
def test_an_address_that_gives_a_secret_away_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="a password, token or signature") as refused:
        Source(paths=(path,))
    assert "hidden" not in str(refused.value)
    assert Source(paths=("https://me@example.org/a.jsonl?download=true",)).paths


def test_a_url_is_known_by_its_name(site: str) -> None:
    known = {source_fingerprint(Source(paths=(f"{site}/{name}",))) for name in ("web.jsonl", "web.jsonl.gz")}
    assert len(known) == 2
