"""From a domain to tokenised splits: right, and what stands in the way is told."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_caches import texts_of
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from opmix.data import cache, tokenization
from opmix.data.prepare import prepare_domain
from opmix.data.sources import iter_documents
from opmix.data.split import SplitRule
from opmix.domain import SPLITS, Domain, Source
from opmix.errors import DataError
from opmix.testing import tiny_tokenizer

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "pretrain"


class TestContents:
    def test_every_document_is_there_once_and_ends_in_eos(
        self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        data = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        count = len(Path(domain.train.paths[0]).read_text().splitlines())
        found = [text for split in SPLITS for text in texts_of(data[split], tokenizer)]
        assert len(found) == len(set(found)) == count
        for split in (data.train, data.valid, data.test):
            ends = np.asarray(split.tokens)[np.asarray(split.offsets[1:]) - 1]
            assert (ends == tokenizer.eos_token_id).all()
            assert split.tokens.dtype == np.uint16
            assert split.offsets[0] == 0
            assert split.offsets[-1] == split.num_tokens
            own = [len(text.encode()) for text in texts_of(split, tokenizer)]
            assert split.byte_counts.tolist() == own
            assert split.num_bytes == sum(own)
            assert split.bytes_per_token == pytest.approx(sum(own) / split.num_tokens)
        assert 5 <= data.valid.num_documents <= 40

    def test_several_processes_give_the_same(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tokenization, "BATCH_DOCUMENTS", 7)
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        one = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "one")
        two = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "two", num_proc=2)
        assert "TOKENIZERS_PARALLELISM" not in os.environ
        assert one.fingerprint == two.fingerprint
        for split in SPLITS:
            for name in ("tokens", "offsets", "byte_counts"):
                np.testing.assert_array_equal(getattr(one[split], name), getattr(two[split], name))

    def test_order_of_documents_does_not_move_them_between_splits(
        self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        before = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        path = Path(domain.train.paths[0])
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
        after = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        for split in SPLITS:
            assert texts_of(after[split], tokenizer) == texts_of(before[split], tokenizer)[::-1]

    def test_given_valid_leaves_test_to_come_from_train(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        write_jsonl: Callable[..., Path],
    ) -> None:
        both = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        valid = Source(paths=(str(write_jsonl(["one", "two"], "valid.jsonl")),))
        data = prepare_domain(replace(domain, valid=valid), tokenizer, cache_dir=tmp_path / "cache")
        assert texts_of(data.valid, tokenizer) == ["one", "two"]
        assert texts_of(data.test, tokenizer) == texts_of(both.test, tokenizer)
        assert data.train.num_documents == both.train.num_documents + both.valid.num_documents

    def test_long_document_in_pieces(
        self, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "the quick brown fox jumps\n" * 500 + "x" * 3000 + " the lazy dogs" * 100
        monkeypatch.setattr(tokenization, "PIECE", 1000)
        monkeypatch.setattr(tokenization, "BATCH_SIZE", 2500)
        monkeypatch.setattr(tokenizer, "model_max_length", 64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoded = tokenization.encode_texts(tokenizer, ["a", text, "b"])
        bounds = np.concatenate([[0], np.cumsum(encoded.lengths)])
        ids = [encoded.ids[a : b - 1].tolist() for a, b in pairwise(bounds)]
        assert [tokenizer.decode(row) for row in ids] == ["a", text, "b"]
        assert bounds[-1] == len(encoded.ids)

    def test_ids_without_offsets_are_those_of_the_tokenizers_own_call(
        self, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = ["the quick brown fox", "", "jumps over " * 50, f"a {tokenizer.eos_token} b", "日本 \U0001f600"]
        tokenizer(texts, truncation=True, max_length=4)  # what a call elsewhere left set
        asked: list[int] = []

        class Own(type(tokenizer)):  # type: ignore[misc]
            def __call__(self, text, *args, **kwargs):  # type: ignore[no-untyped-def]
                asked.append(len(text))
                return super().__call__(text, *args, **kwargs)

        for split in (False, True):
            monkeypatch.setattr(tokenizer, "split_special_tokens", split)
            fast = tokenization.encode_texts(tokenizer, texts)
            monkeypatch.setattr(tokenizer, "__class__", Own)
            slow = tokenization.encode_texts(tokenizer, texts)
            monkeypatch.undo()
            assert asked.pop() == len(texts)
            np.testing.assert_array_equal(fast.ids, slow.ids)
            np.testing.assert_array_equal(fast.lengths, slow.lengths)

    def test_token_files(self, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
        texts = [f"the fox {i}" for i in range(60)]
        ids = [i for text in texts for i in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
        np.save(tmp_path / "ids.npy", np.array(ids))
        domain = Domain(name="ids", train=Source(paths=(str(tmp_path / "ids.npy"),)), holdout=0.2)
        data = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert sorted(text for split in SPLITS for text in texts_of(data[split], tokenizer)) == sorted(texts)
        assert sum(data[split].num_bytes for split in SPLITS) == sum(map(len, texts))
        assert sum(data[split].num_tokens for split in SPLITS) == len(ids)

    @pytest.mark.slow
    def test_large_vocabulary_needs_wider_ids(
        self, domain: Domain, make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
    ) -> None:
        wide = make_tokenizer(["a b"])
        wide.add_tokens([f"<extra_{i}>" for i in range(1 << 16)])
        data = prepare_domain(domain, wide, cache_dir=tmp_path)
        assert data.train.tokens.dtype == np.uint32


class TestErrors:
    def test_no_eos(self, domain: Domain, make_tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no end-of-sequence token; .*set tokenizer.eos_token"):
            prepare_domain(domain, make_tokenizer(["a"], eos=None), cache_dir=tmp_path)

    @pytest.mark.parametrize(
        ("texts", "message"),
        [([""], "holds no document"), (["only one"], "has 1 document,.*raise `holdout`")],
    )
    def test_too_few_documents(
        self, texts: list[str], message: str, tokenizer: Any, tmp_path: Path, write_jsonl: Callable[..., Path]
    ) -> None:
        domain = Domain(name="few", train=Source(paths=(str(write_jsonl(texts)),)))
        with pytest.raises(DataError, match=rf"domain 'few': .*{message}"):
            prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_token_file_of_another_tokenizer(self, tokenizer: Any, tmp_path: Path) -> None:
        np.save(tmp_path / "ids.npy", np.array([1, 2, 60000]))
        domain = Domain(name="ids", train=Source(paths=(str(tmp_path / "ids.npy"),)))
        with pytest.raises(DataError, match="domain 'ids': token ids from 1 to 60000; expected ids below"):
            prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_bad_line_leaves_nothing_behind(self, domain: Domain, tokenizer: Any, tmp_path: Path) -> None:
        with Path(domain.train.paths[0]).open("a") as file:
            file.write("{oops\n")
        for num_proc in (1, 2):
            with pytest.raises(DataError, match=r"domain 'web': .*:201: not JSON"):
                prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache", num_proc=num_proc)
        assert list((tmp_path / "cache").iterdir()) == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
    def test_disk_that_refuses(
        self, domain: Domain, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        rename = Path.rename

        def refuse(self: Path, target: Path) -> Path:
            if self.name.startswith(".writing"):
                raise OSError(number, os.strerror(number), str(self))
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(DataError, match=rf"token cache .*{os.strerror(number)}.*another cache folder"):
            prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_full_disk_while_writing(self, tmp_path: Path) -> None:
        """`/dev/full` is a real device that is always full."""
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        writer = cache.SplitWriter(tmp_path / "cache", "f" * 32, np.dtype("<u2"))
        writer._files["tokens.bin"].close()
        writer._files["tokens.bin"] = Path("/dev/full").open("wb")  # noqa: SIM115
        with pytest.raises(DataError, match="No space left"), writer:
            writer.write(np.zeros(100_000, np.uint16), np.array([100_000]), np.array([1]))
        assert list((tmp_path / "cache").iterdir()) == []

    def test_cache_folder_that_cannot_be(self, domain: Domain, tokenizer: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match=r"token cache .*cannot be written"):
            prepare_domain(domain, tokenizer, cache_dir=tmp_path / "file" / "cache")

    def test_worker_that_dies(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokenization, "encode_batch", lambda *_: os._exit(9))
        with pytest.raises(DataError, match=r"worker processes died.*smaller num_proc"):
            list(tokenization.encode_batches(tokenizer, [["a"]] * 5, num_proc=2))


def test_progress(domain: Domain, tokenizer: Any, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    prepare_domain(domain, tokenizer, cache_dir=tmp_path / "c", progress=lambda *call: calls.append(call))
    assert calls[-1] == ("web", 200, 200)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


@given(st.lists(st.text(min_size=1), unique=True, max_size=30), st.floats(0.01, 0.49))
def test_a_document_has_one_split_whatever_else_is_carved(texts: list[str], holdout: float) -> None:
    both = SplitRule(carved=("valid", "test"), holdout=holdout)
    valid = SplitRule(carved=("valid",), holdout=holdout)
    for text in texts:
        text = text.encode("utf-8", "replace").decode()
        split = both.split_of(text)
        assert split in SPLITS
        assert (valid.split_of(text) == "valid") == (split == "valid")


def test_shares_of_the_splits() -> None:
    rule = SplitRule(carved=("valid", "test"), holdout=0.1)
    found = [rule.split_of(str(i)) for i in range(20_000)]
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        assert abs(found.count(split) / 20_000 - share) < 0.01  # four standard deviations


@pytest.mark.skipif(not REAL.is_dir(), reason="the project's shared data is not here")
def test_real_text(make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path) -> None:
    def files(name: str, split: str) -> Source:
        return Source(paths=(str(REAL / name / f"{split}.jsonl.gz"),))

    names = ("shakespeare", "speeches_us")
    tokenizer = make_tokenizer([t for n in names for t in islice(iter_documents(files(n, "valid")), 5)], 1000)
    for name, documents in zip(names, (279, 191), strict=True):
        domain = Domain(name=name, train=files(name, "train"), valid=files(name, "valid"))
        data = prepare_domain(domain, tokenizer, cache_dir=tmp_path)
        assert data.train.num_documents + data.test.num_documents == documents
        assert 1.5 < data.train.bytes_per_token < 5
        first = next(iter_documents(files(name, "valid")))
        assert texts_of(data.valid, tokenizer)[0] == first


def _with_bos(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_documents_begin_as_the_tokenizer_begins_texts(tmp_path):
    tokenizer = _with_bos(tiny_tokenizer())
    texts = ["one text", "<s>spelt out already", "three"] * 20
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": t + str(i)}) + "\n" for i, t in enumerate(texts)))
    domain = Domain(name="d", train=Source(paths=(str(tmp_path / "d.jsonl"),)))
    split = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache").train
    starts = split.tokens[np.asarray(split.offsets[:-1])]
    assert (starts == tokenizer.bos_token_id).all()
    assert (split.tokens == tokenizer.bos_token_id).sum() == len(starts)
    plain = prepare_domain(replace(domain, bos=False), tokenizer, cache_dir=tmp_path / "cache").train
    assert (plain.tokens == tokenizer.bos_token_id).sum() < len(starts) / 2
    without = prepare_domain(domain, tiny_tokenizer(), cache_dir=tmp_path / "cache").train
    assert len(without.offsets) == len(split.offsets)
    assert not (without.tokens == tokenizer.bos_token_id).any()
