"""`opmix export --materialise`: the data in the trainer's layout, with shares that are read back in tokens."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from export_shares import MIXTURE, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.data.sources import iter_token_documents
from opmix.data.split import SplitRule
from opmix.data.written_out import ROWS
from opmix.domain import Source, SourceFormat
from opmix.errors import ConfigError, DataError, StoreError
from opmix.exporters import ExportOptions
from opmix.progress import Silent
from opmix.scaffold.materialise import materialise

BUDGET = 60_000
NAMES = ["<eos>", *WORDS]
WANTED = {name: share for name, share in MIXTURE.items() if share}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of whole words, with an EOS."""
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(NAMES)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    made.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    folder = tmp_path_factory.mktemp("words")
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory):
    """Sources that no trainer reads as they are, several compressed files a domain, and the cache of their tokens."""
    domains, held, top = {}, str(corpus.folder / "poems.jsonl"), tmp_path_factory.mktemp("data")
    for name in MIXTURE:
        folder = top / "gz" / name
        folder.mkdir(parents=True)
        lines = (corpus.folder / f"{name}.jsonl").read_text().splitlines()
        for part in range(2):
            with gzip.open(folder / f"{part}.jsonl.gz", "wt") as file:
                file.write("\n".join(lines[part::2]) + "\n")
        domains[name] = {"train": str(folder), "valid": held, "test": held}
    return {"domains": domains, "cache_dir": str(top / "cache")}


@pytest.fixture
def run(make_run, words, data):
    """A search on them."""
    return make_run(budget=BUDGET, model=str(words), **data)


def written(run, to, folder, **options):
    return materialise(run, to, folder, ExportOptions(**options), progress=Silent())


def check_shares(counted):
    """Within a document of every domain, which the documents chosen reach and do not pass."""
    total = sum(counted.values())
    assert total >= BUDGET
    for name, share in WANTED.items():
        assert 0 <= counted[name] - round(share * BUDGET) <= WORDS[name][1] + 1


ROWS_FAMILY = ["interleave", "trl", "axolotl", "llamafactory", "dataflex", "ms-swift", "torchtitan"]


@pytest.mark.parametrize("to", ROWS_FAMILY)
def test_rows_of_text(run, to, tmp_path):
    made = written(run, to, tmp_path / "out")
    counted = Counter()
    for name in WANTED:
        path = tmp_path / "out" / name / ROWS
        rows = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        counted[name] = sum(len(text.split()) + 1 for text in rows)
        assert {word for text in rows for word in text.split()} == {name}
        assert str(path) in made.export.text + "".join(made.export.companions.values())
    check_shares(counted)
    assert {n: w.tokens for n, w in made.written.items()} == counted
    assert not any("held out" in warning or "epoch" in warning for warning in made.export.warnings)


TOKENS_FAMILY: dict[str, tuple[SourceFormat, str]] = {
    "megatron": ("megatron", "text_document.bin"),
    "nemo": ("megatron", "text_document.bin"),
    "nanotron": ("datatrove", ""),
    "litdata": ("litdata", ""),
    "olmo-core": ("bin", "part-0-00000.npy"),
}


@pytest.mark.parametrize("to", TOKENS_FAMILY)
def test_token_ids(run, to, tmp_path):
    made = written(run, to, tmp_path / "out")
    kind, file = TOKENS_FAMILY[to]
    counted = Counter()
    for name in WANTED:
        place = tmp_path / "out" / name
        assert str(place) in made.export.text
        documents = [d.tolist() for d in iter_token_documents(Source(paths=(str(place / file),), format=kind), 0)]
        counted[name] = sum(len(ids) + 1 for ids in documents)
        assert {i for ids in documents for i in ids} == {NAMES.index(name)}
    check_shares(counted)


@pytest.mark.parametrize("to", ["streaming", "llm-foundry"])
def test_shards_of_mosaic(run, to, tmp_path):
    written(run, to, tmp_path / "out")
    for name, share in WANTED.items():
        index = json.loads((tmp_path / "out" / name / "index.json").read_text())
        ids = []
        for shard in index["shards"]:
            content = (tmp_path / "out" / name / shard["raw_data"]["basename"]).read_bytes()
            (count,) = struct.unpack("<I", content[:4])
            places = np.frombuffer(content, "<u4", count + 1, 4)
            assert (count, len(content)) == (shard["samples"], places[-1])
            assert set(np.diff(places)) == {4 * 32}
            ids.append(np.frombuffer(content, "<i4", 32 * count, places[0]))
        assert 0 <= np.concatenate(ids).size - (share * BUDGET - 32) <= 32 + WORDS[name][1] + 1
        assert set(np.concatenate(ids)) == {0, NAMES.index(name)}


def test_conversations_become_messages_and_share_their_answers(make_run, words, tmp_path):
    rng, domains, counts = random.Random(0), {}, {}
    for name in WANTED:
        lines = [
            {"instruction": " ".join(rng.choices(NAMES[1:], k=9)), "output": " ".join([name] * rng.randint(1, 20))}
            for _ in range(500)
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(lines))
        domains[name] = {"train": str(path), "kind": "chat"}
        answers = sum(len(line["output"].split()) + 1 for line in lines)
        counts[name] = {"tokens": 4 * answers, "supervised_tokens": answers, "documents": 500, "bytes": 9}
    run = make_run(
        budget=3000,
        model=str(words),
        domains=domains,
        objective="sft",
        cache_dir=str(tmp_path / "cache"),
        mixture=WANTED,
        counts=False,
    )
    for file, key, value in (
        ("mixture.json", "domains", {n: {"train": c} for n, c in counts.items()}),
        ("manifest.json", "rows", dict.fromkeys(WANTED, "instruction and output")),
    ):
        content = json.loads((run / file).read_text())
        (run / file).write_text(json.dumps({**content, key: value}))
    made = written(run, "llamafactory", tmp_path / "out")
    info = json.loads(made.export.companions["dataset_info.json"])
    for name, share in WANTED.items():
        rows = [json.loads(line)["messages"] for line in (tmp_path / "out" / name / ROWS).read_text().splitlines()]
        assert [m["role"] for m in rows[0]] == ["user", "assistant"]
        learned = sum(len(answer["content"].split()) + 1 for _, answer in rows)
        assert 0 <= learned - share * 3000 <= 21
        assert info[name]["formatting"] == "sharegpt"
    with pytest.raises(ConfigError, match="conversations as bare tokens"):
        written(run, "megatron", tmp_path / "other")


def test_what_was_held_out_is_not_written(make_run, words, tmp_path):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(["code", "math", "poems"], k=rng.randint(8, 20))) for _ in range(400)]
    (tmp_path / "web.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train = {"train": str(tmp_path / "web.jsonl"), "holdout": 0.2}
    domains = {"web": train, "poems": train}
    run = make_run(
        budget=10**6,
        mixture={"web": 1.0, "poems": 0.0},
        model=str(words),
        domains=domains,
        cache_dir=str(tmp_path / "c"),
    )
    written(run, "interleave", tmp_path / "out")
    rows = [json.loads(line)["text"] for line in (tmp_path / "out" / "web" / ROWS).read_text().splitlines()]
    rule = SplitRule(carved=("valid", "test"), holdout=0.2)
    assert rows == [text for text in texts if rule.split_of(text) == "train"]


def test_a_corpus_in_place_is_written_in_another_layout(make_run, words, tmp_path):
    rng, domains = random.Random(2), {}
    for name in ("web", "code"):
        ids = [i for _ in range(2000) for i in (*[NAMES.index(name)] * rng.randint(5, 60), 0)]
        np.array(ids, dtype="<u2").tofile(tmp_path / f"{name}.bin")
        domains[name] = {"train": {"paths": str(tmp_path / f"{name}.bin"), "in_place": True}}
    run = make_run(
        budget=60_000,
        mixture={"web": 0.75, "code": 0.25},
        model=str(words),
        domains=domains,
        counts=False,
        cache_dir=str(tmp_path / "cache"),
    )
    made = written(run, "nanotron", tmp_path / "out")
    for name, share in (("web", 0.75), ("code", 0.25)):
        source = Source(paths=(str(tmp_path / "out" / name),), format="datatrove")
        documents = [d.tolist() for d in iter_token_documents(source, 0)]
        assert {i for ids in documents for i in ids} == {NAMES.index(name)}
        assert max(map(len, documents)) <= 60
        assert 0 <= made.written[name].tokens - share * 60_000 < 4096


def test_a_domain_that_is_too_small_is_written_whole_and_repeated(run, tmp_path):
    made = written(run, "llamafactory", tmp_path / "out", tokens=400_000)
    assert "interleave_over" in made.export.text
    assert made.written["web"].tokens < 0.5 * 400_000
    assert any("more than one epoch of web" in warning for warning in made.export.warnings)


class TestAgain:
    def test_finished_domains_are_kept_and_the_rest_is_written(self, run, tmp_path):
        first = written(run, "trl", tmp_path / "out")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob(ROWS)}
        shutil.rmtree(tmp_path / "out" / "code")
        again = written(run, "trl", tmp_path / "out")
        assert again.export == first.export
        assert [name for name, made in again.written.items() if made.again] == ["web", "math"]
        kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob(ROWS)}
        assert {p.parent.name for p, time in kept.items() if before.get(p) == time} == {"web", "math"}

    def test_what_another_export_wrote_is_not_overwritten(self, run, tmp_path):
        written(run, "trl", tmp_path / "out")
        with pytest.raises(StoreError, match="holds something else"):
            written(run, "megatron", tmp_path / "out")
        assert (tmp_path / "out" / "web" / ROWS).is_file()

    def test_nothing_half_written_has_the_name(self, run, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("opmix.data.written_out._rows", full)
        with pytest.raises(StoreError, match=r"No space left.*finished domains are kept"):
            written(run, "trl", tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == []


class TestSaidFirst:
    def test_too_little_room(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(StoreError, match=r"60,000 tokens of 3 domains.*are to be written"):
            written(run, "trl", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_on_the_command_line(self, run, tmp_path):
        out = tmp_path / "config" / "mix.yaml"
        call = ["export", str(run), "--to", "axolotl", "--materialise", str(tmp_path / "out"), "--out", str(out)]
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, done.output
        assert "documents" in done.output
        assert str(tmp_path / "out" / "web" / ROWS) in out.read_text()

    def test_what_cannot_be(self, run, fitted_run, make_run, tmp_path):
        for bad, error, words in (
            ((fitted_run, "trl"), ConfigError, "knows no data"),
            ((run, "verl"), ConfigError, "rewards"),
        ):
            with pytest.raises(error, match=words):
                written(*bad, tmp_path / "out")
        with pytest.raises(ConfigError, match="leave --path"):
            written(run, "trl", tmp_path / "out", paths={"web": "x.jsonl"})
        with pytest.raises(ConfigError, match="leave --unit out"):
            written(run, "litdata", tmp_path / "out", unit="documents")
        assert not (tmp_path / "out").exists()


def test_a_source_that_changed_under_way_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr("opmix.data.written_out.iter_documents", lambda *_, **__: iter(()))
    with pytest.raises(DataError, match="fewer documents than were tokenised"):
        written(run, "trl", tmp_path / "out")
    assert list(Path(tmp_path / "out").iterdir()) == []
