"""Corpora that are trained on where they lie: nothing copied but stripes, nothing hashed, and the same tokens."""

from __future__ import annotations

import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.data import PackedSequences, prepare_domain, source_fingerprint
from opmix.data import in_place as module
from opmix.data.in_place import TokensInPlace, held_out_stripes
from opmix.data.rows import supervised_per_row, total
from opmix.data.sources import SourceFile, resolve
from opmix.data.split import SplitRule
from opmix.domain import Domain, Source
from opmix.errors import ConfigError, DataError
from opmix.progress import Silent
from opmix.target import Target
from opmix.testing import tiny_tokenizer
from opmix.training.settings import DistillationSettings
from opmix.training.stage_data import prepare_data

EOS = 0
RULE = SplitRule(carved=("valid", "test"), holdout=0.1)


def corpus(folder: Path, sizes: list[list[int]]) -> tuple[Path, np.ndarray]:
    """Files of documents of so many tokens before their EOS, numbered throughout, and all ids."""
    folder.mkdir(parents=True, exist_ok=True)
    made, at = [], 1
    for number, documents in enumerate(sizes):
        ids: list[int] = []
        for size in documents:
            ids += [*(1 + (at + i) % 400 for i in range(size)), EOS]
            at += size
        np.array(ids, dtype="<u2").tofile(folder / f"part-{number:03}.bin")
        made.append(np.array(ids, dtype=np.int64))
    return folder, np.concatenate(made)


def opened(folder: Path) -> TokensInPlace:
    return TokensInPlace(resolve(Source(paths=(str(folder),))), "uint16", EOS, "web")


SIZES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=5)


class TestTokens:
    @settings(deadline=None, max_examples=20)
    @given(sizes=SIZES, draw=st.data())
    def test_stretches_and_document_starts_are_those_of_all_files_end_to_end(
        self, tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], draw: Any
    ) -> None:
        folder, ids = corpus(tmp_path_factory.mktemp("c"), sizes)
        tokens = opened(folder)
        first = draw.draw(st.integers(0, len(ids)))
        last = draw.draw(st.integers(first, len(ids)))
        assert len(tokens) == len(ids)
        assert tokens[first:last].tolist() == ids[first:last].tolist()
        begins = np.flatnonzero(np.concatenate([[EOS], ids[:-1]]) == EOS)
        assert tokens.starts(first, last).tolist() == [b for b in begins.tolist() if first <= b < last]

    @settings(deadline=None, max_examples=20)
    @given(sizes=SIZES, holdout=st.sampled_from([0.02, 0.1, 0.3, 0.49]), draw=st.data())
    def test_what_is_held_out_is_not_left(
        self, tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], holdout: float, draw: Any
    ) -> None:
        folder, ids = corpus(
            tmp_path_factory.mktemp("c"), [[*documents, 130] for documents in sizes]
        )  # 4 for each of 32 stripes
        tokens = opened(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_SHORTEST_STRIPE", draw.draw(st.sampled_from([1, 8, 1 << 14])))
            stripes = held_out_stripes(tokens, SplitRule(carved=RULE.carved, holdout=holdout), "web")
        edges = sorted(stretch for some in stripes.values() for stretch in some)
        assert all(low < high for low, high in edges)
        assert all(before[1] <= after[0] for before, after in pairwise(edges))
        held = np.zeros(len(ids), dtype=bool)
        for low, high in edges:
            held[low:high] = True
        rest = tokens.without(edges)
        assert rest[:].tolist() == ids[~held].tolist()
        whole = [d.tolist() for d in rest.documents([(0, len(rest))])]
        assert [i for d in whole for i in d] == [i for i in ids[~held].tolist() if i != EOS]

    def test_files_are_opened_a_bounded_number_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_OPEN", 2)
        folder, ids = corpus(tmp_path, [[5], [6], [7], [8]])
        tokens = opened(folder)
        assert tokens[:].tolist() == ids.tolist()
        assert len(tokens._open) == 2

    def test_files_of_numpy_are_read_behind_their_header(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.arange(1, 500, dtype="<u4"))
        tokens = TokensInPlace(resolve(Source(paths=(str(tmp_path / "a.npy"),))), "uint16", EOS, "web")
        assert tokens[7:90].tolist() == [*range(8, 91)]

    def test_a_file_that_has_become_shorter_is_told(self, tmp_path: Path) -> None:
        folder, ids = corpus(tmp_path, [[50]])
        tokens = opened(folder)
        os.truncate(folder / "part-000.bin", 20)
        assert tokens[:10].tolist() == ids[:10].tolist()
        with pytest.raises(DataError, match=r"part-000\.bin: has become shorter"):
            tokens[5:20]

    def test_a_worker_gets_names_and_no_tokens(self, tmp_path: Path) -> None:
        folder, ids = corpus(tmp_path, [[5000], [6000]])
        tokens = opened(folder).without([(10, 20)])
        sent = pickle.dumps(tokens)
        assert len(sent) < 2000 < ids.nbytes
        assert pickle.loads(sent)[5:15].tolist() == tokens[5:15].tolist()


class TestPreparing:
    @pytest.fixture
    def domain(self, tmp_path: Path) -> Domain:
        folder, _ = corpus(tmp_path / "corpus", [[20] * 200, [33] * 100])
        return Domain(name="web", train=Source(paths=(str(folder),), in_place=True), holdout=0.1)

    def prepared(self, domain: Domain, tmp_path: Path) -> Any:
        tokenizer = tiny_tokenizer()
        assert tokenizer.eos_token_id == EOS
        return prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")

    def test_training_reads_the_files_and_what_is_held_out_is_copied(self, domain: Domain, tmp_path: Path) -> None:
        made = self.prepared(domain, tmp_path)
        total = 200 * 21 + 100 * 34
        copied = made.valid.num_tokens + made.test.num_tokens
        assert made.train.num_tokens + copied == total
        assert made.valid.num_tokens == pytest.approx(0.1 * total, rel=0.1)
        assert {p.name for p in (tmp_path / "cache").glob("tokens-*")} == {
            made.valid.folder.name,
            made.test.folder.name,
        }
        rows = PackedSequences(made.train, 64)
        corpus_ids = np.concatenate([np.fromfile(p, "<u2") for p in sorted((tmp_path / "corpus").iterdir())])
        assert rows[0].tolist() == corpus_ids[:64].tolist()
        assert rows.position_ids(0).tolist() == [*range(21), *range(21), *range(21), 0]

    def test_a_second_time_nothing_is_read_for_what_was_held_out(
        self, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.prepared(domain, tmp_path)
        monkeypatch.setattr(TokensInPlace, "documents", lambda *_: pytest.fail("read again"))
        assert self.prepared(domain, tmp_path).fingerprint == first.fingerprint

    def test_the_same_rows_as_from_the_cache(self, domain: Domain, tmp_path: Path) -> None:
        held = tmp_path / "held.bin"
        np.array([*range(1, 200), EOS] * 3, dtype="<u2").tofile(held)
        given = {"valid": Source(paths=(str(held),)), "test": Source(paths=(str(held),))}
        paths = domain.train.paths
        there = self.prepared(Domain(name="w", train=Source(paths=paths, in_place=True), **given), tmp_path)
        copied = self.prepared(Domain(name="w", train=Source(paths=paths), **given), tmp_path)
        a, b = PackedSequences(there.train, 50), PackedSequences(copied.train, 50)
        assert len(a) == len(b)
        assert all(a[i].tolist() == b[i].tolist() for i in range(len(a)))
        assert all(a.position_ids(i).tolist() == b.position_ids(i).tolist() for i in range(len(a)))

    def test_documents_that_nobody_counted_are_not_said_to_be_none(self, domain: Domain, tmp_path: Path) -> None:
        data = prepare_data(
            {"web": domain},
            tiny_tokenizer(),
            objective=None,
            sdft=DistillationSettings(),
            sequence_length=64,
            cache_dir=tmp_path / "cache",
            num_proc=1,
            progress=Silent(),
        )
        assert set(data.counts("web", "train")) == {"tokens"}
        assert set(data.counts("web", "valid")) == {"tokens", "bytes", "documents"}
        assert data.notes() == [note for note in data.notes() if "names, sizes and times of change alone" in note] != []
        assert np.isnan(data.train["web"].num_bytes(0))

    def test_other_times_sizes_or_names_are_other_data(self, domain: Domain, tmp_path: Path) -> None:
        known = [source_fingerprint(domain.train)]
        path = tmp_path / "corpus" / "part-000.bin"
        os.utime(path, ns=(10**18, 10**18))
        known.append(source_fingerprint(domain.train))
        path.rename(path.with_name("part-0000.bin"))
        known.append(source_fingerprint(domain.train))
        with path.with_name("part-0000.bin").open("ab") as file:
            file.write(b"\1\0")
        os.utime(path.with_name("part-0000.bin"), ns=(10**18, 10**18))
        known.append(source_fingerprint(domain.train))
        assert len(set(known)) == 4
        (tmp_path / "corpus").rename(tmp_path / "moved")
        assert source_fingerprint(Source(paths=(str(tmp_path / "moved"),), in_place=True)) == known[-1]

    def test_ids_of_another_tokenizer_are_told(self, domain: Domain, tmp_path: Path) -> None:
        np.full(10_000, 60_000, dtype="<u2").tofile(tmp_path / "corpus" / "part-002.bin")
        with pytest.raises(DataError, match="expected ids below"):
            self.prepared(domain, tmp_path)

    def test_too_little_to_hold_anything_out(self, tmp_path: Path) -> None:
        folder, _ = corpus(tmp_path / "corpus", [[3]])
        domain = Domain(name="web", train=Source(paths=(str(folder),), in_place=True))
        with pytest.raises(DataError, match=r"4 tokens, of which 0\.05 cannot be held out"):
            self.prepared(domain, tmp_path)


def test_a_corpus_of_many_gigabytes_is_neither_read_nor_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files: they take no room, and a byte that is read is counted where ids are handed out."""
    monkeypatch.setattr(module, "HELD_OUT_TOKENS", 1 << 14)
    for number in range(4):
        path = tmp_path / "corpus" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, 16 << 30)
    handed = []
    get = TokensInPlace.__getitem__

    def counting(self: TokensInPlace, part: slice) -> Any:
        found = get(self, part)
        handed.append(found.nbytes)
        return found

    monkeypatch.setattr(TokensInPlace, "__getitem__", counting)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(5)
    train = Source(paths=(str(tmp_path / "corpus"),), dtype="uint32", in_place=True)
    made = prepare_domain(Domain(name="web", train=train), tokenizer, cache_dir=tmp_path / "cache")
    rows = PackedSequences(made.train, 4096)
    assert total(rows.supervised) == len(rows) * 4096 == round(supervised_per_row(rows)) * len(rows)
    assert rows[len(rows) - 1].tolist() == [0] * 4096
    assert made.train.num_tokens > 4 * (16 << 30) // 4 - (1 << 16)
    assert sum(handed) < 4 << 20
    cached = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert cached < 1 << 20


class TestRefused:
    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
        with pytest.raises(DataError, match="no file of token ids"):
            resolve(Source(paths=(str(tmp_path / "a.jsonl"),), in_place=True))
        with pytest.raises(ConfigError, match="in_place: of parquet"):
            Source(paths=("a.parquet",), format="parquet", in_place=True)

    def test_what_judges(self) -> None:
        there = Source(paths=("a.bin",), in_place=True)
        with pytest.raises(ConfigError, match=r"valid\.in_place"):
            Domain(name="web", train=there, valid=there)
        with pytest.raises(ConfigError, match="a target is measured whole"):
            Target(valid=there)

    def test_a_bound_and_conversations(self) -> None:
        with pytest.raises(ConfigError, match="max_tokens"):
            Source(paths=("a.bin",), in_place=True, max_tokens=5)
        with pytest.raises(ConfigError, match="of kind chat"):
            Domain(name="web", train=Source(paths=("a.bin",), in_place=True), kind="chat")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    files = (SourceFile(path=str(tmp_path / "gone.bin"), format="bin"),)
    with pytest.raises(DataError, match=r"gone\.bin"):
        TokensInPlace(files, "uint16", EOS, "web")
