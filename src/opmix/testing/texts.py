"""Toy domains of text and conversations whose statistics differ. Imports no torch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

_SYLLABLES = 40
"""Syllables a toy domain is built from; up to 3 make a word."""


def toy_documents(name: str, num_documents: int, *, seed: int = 0) -> Iterator[str]:
    """Documents of one toy domain: its own syllables, words and habit of which word follows which.

    Every domain is its own first-order chain over 200 words made of 40 syllables of its own, so models
    trained on one predict another badly, and what is learned of one helps a little (spaces, sentence length).
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    syllables = ["".join(rng.choice(letters, size=rng.integers(2, 4))) for _ in range(_SYLLABLES)]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(200)]
    followers = rng.integers(0, len(words), size=(len(words), 8))
    for _ in range(num_documents):
        sentences = []
        for _ in range(rng.integers(2, 8)):
            word, sentence = int(rng.integers(len(words))), []
            for _ in range(rng.integers(4, 14)):
                sentence.append(words[word])
                word = int(followers[word, rng.geometric(0.5) % 8])
            sentences.append(" ".join(sentence) + ".")
        yield " ".join(sentences)


def write_toy_domains(
    folder: str | Path, names: Sequence[str] = ("alpha", "beta"), num_documents: int = 200, seed: int = 0
) -> dict[str, Path]:
    """Write one `<name>.jsonl` per toy domain, `{"text": ...}` a line, and say where."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in names:
        files[name] = folder / f"{name}.jsonl"
        with files[name].open("w", encoding="utf-8") as stream:
            for text in toy_documents(name, num_documents, seed=seed):
                stream.write(json.dumps({"text": text}) + "\n")
    return files


def toy_conversations(name: str, num: int, *, sentences: int = 1, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Conversations of a toy domain: the user says a sentence, the assistant goes on with `sentences` more."""
    for text in toy_documents(name, num, seed=seed):
        parts = [part + "." for part in text.removesuffix(".").split(". ")]
        question, answer = parts[0], " ".join((parts[1:] * sentences)[:sentences])
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_toy_chats(
    folder: str | Path, sentences: Mapping[str, int], num_conversations: int = 200, seed: int = 0
) -> dict[str, Path]:
    """Write one `<name>.jsonl` per toy chat domain, `{"messages": ...}` a line; answers have the sentences given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, count in sentences.items():
        files[name] = folder / f"{name}.jsonl"
        rows = toy_conversations(name, num_conversations, sentences=count, seed=seed)
        files[name].write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return files
