"""Tokenised splits are found again, told apart by all that matters, and never half-written."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_caches import leftovers, texts_of
from transformers import PreTrainedTokenizerFast

from opmix.data import cache, tokenization
from opmix.data.cache import TokenSplit
from opmix.data.prepare import prepare_domain
from opmix.data.tokenization import tokenizer_fingerprint
from opmix.domain import SPLITS, Domain
from opmix.errors import DataError


@pytest.fixture
def no_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenization, "encode_batch", refuse)


class TestCache:
    def test_found_again_without_tokenising(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        first = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        request.getfixturevalue("no_tokenising")
        second = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        assert first.fingerprint == second.fingerprint
        assert isinstance(second.train.tokens, np.memmap)
        np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
        # A call elsewhere that truncates leaves its settings behind; they do not count.
        tokenizer("a b c", truncation=True, max_length=2)
        prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")

    def test_a_changed_byte_field_tokenizer_or_holdout_is_another_key(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerFast,
        make_tokenizer: Callable[..., PreTrainedTokenizerFast],
        tmp_path: Path,
    ) -> None:
        path = Path(domain.train.paths[0])
        path.write_text(path.read_text().replace('"text"', '"body": "other words", "text"'))
        prints = [prepare_domain(domain, tokenizer, cache_dir=tmp_path / "c").fingerprint]
        other = make_tokenizer(["abc abd"], vocab_size=300)
        prints.append(prepare_domain(domain, other, cache_dir=tmp_path / "c").fingerprint)
        prints.append(prepare_domain(replace(domain, holdout=0.2), tokenizer, cache_dir=tmp_path / "c").fingerprint)
        text = path.read_text()
        path.write_text(text.replace("document 77:", "document 78:"))
        changed = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "c")
        assert "document 77:" not in "".join(t for s in SPLITS for t in texts_of(changed[s], tokenizer))
        prints.append(changed.fingerprint)
        assert len(set(prints)) == 4
        with pytest.raises(DataError, match="left valid, test without"):  # every body is the same: one split
            prepare_domain(
                replace(domain, train=replace(domain.train, field="body")),
                tokenizer,
                cache_dir=tmp_path / "c",
            )

    def test_eos_is_part_of_the_key(self, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
        one, two = make_tokenizer(["a b"]), make_tokenizer(["a b"])
        assert tokenizer_fingerprint(one) == tokenizer_fingerprint(two)
        two.eos_token = "a"
        assert tokenizer_fingerprint(one) != tokenizer_fingerprint(two)

    @pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "bytes.bin", "split.json"])
    def test_damaged_cache_is_written_again(
        self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
    ) -> None:
        first = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        want = np.array(first.valid.tokens)
        assert first.valid.folder is not None
        file = first.valid.folder / name
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data[:-5])
        again = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(again.valid.tokens, want)
        assert leftovers(tmp_path / "cache") == []

    def test_two_at_once(self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(prepare_domain, domain, tokenizer, cache_dir=tmp_path / "c") for _ in range(4)]
            results = [job.result() for job in jobs]
        assert len({result.fingerprint for result in results}) == 1
        assert len(list((tmp_path / "c").iterdir())) == 3

    def test_what_another_process_has_mended_is_kept(
        self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both find a damaged split; the slower one comes when the faster one's is in place and in use."""
        place = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "c").valid.folder
        assert place is not None
        whole = (place / "tokens.bin").read_bytes()
        (place / "tokens.bin").write_bytes(whole[:-1])

        @contextmanager
        def after_the_faster_one(folder: Path) -> Iterator[bool]:
            (place / "tokens.bin").write_bytes(whole)
            (place / "of the faster one").touch()
            yield True

        monkeypatch.setattr(cache, "alone_in", after_the_faster_one)
        prepare_domain(domain, tokenizer, cache_dir=tmp_path / "c")
        assert (place / "of the faster one").exists()
        assert leftovers(tmp_path / "c") == []

    def test_pickles_as_a_place_on_disk(
        self, domain: Domain, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        data = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
        packed = pickle.dumps(data)
        assert len(packed) < 2000
        again: TokenSplit = pickle.loads(packed).train
        assert isinstance(again.tokens, np.memmap)
        np.testing.assert_array_equal(again.tokens, data.train.tokens)
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(DataError, match="gone or damaged"):
            pickle.loads(packed)
