"""A tokenizer trained on the spot, small files and token splits in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opmix.data.cache import TokenSplit
from opmix.domain import Domain, Source

TEXTS = [f"document {i}: the quick brown fox {i * 7} jumps over {'lazy ' * (i % 5)}dogs, é你好" for i in range(200)]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 400, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(texts: Sequence[str], name: str = "data.jsonl", field: str = "text") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def domain(write_jsonl: Callable[..., Path]) -> Domain:
    """200 documents, a tenth of them for each held-out set."""
    return Domain(name="web", train=Source(paths=(str(write_jsonl(TEXTS)),)), holdout=0.1)


def token_split(lengths: Sequence[int], name: str = "x", byte_counts: Sequence[int] | None = None) -> TokenSplit:
    """A split in memory whose token at position t is t modulo 97."""
    total = sum(lengths)
    return TokenSplit(
        domain=name,
        split="train",
        fingerprint="0" * 32,
        tokens=(np.arange(total) % 97).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        byte_counts=np.array(byte_counts if byte_counts is not None else [4 * n for n in lengths], dtype=np.int64),
    )


@pytest.fixture(scope="session")
def make_split() -> Callable[..., TokenSplit]:
    return token_split


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return train_tokenizer
