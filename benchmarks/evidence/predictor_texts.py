"""Text of a pool of the race of predictors: domains with the faults of real ones, written once.

Sources are the repository's benchmark data where `--data` has them, else text that arrives with Python packages (the demo's).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from opmix.data import PackedSequences, prepare_domain
from opmix.demo.texts import SOURCES as PACKAGED
from opmix.domain import Domain, Source
from opmix.models import from_scratch as scratch
from opmix.probes.evaluation import HeldOut
from opmix.probes.held_out import held_out

LENGTH, VOCABULARY = 64, 1024
POOL_BYTES = 1_400_000
PIECE = 4000
"""Longest piece of a document, characters: a small domain then has more than a handful."""
SUBSTITUTES = {
    "bible_kjv": "scripture",
    "code_python": "python_code",
    "legal_licenses": "legal",
    "docs_python": "reference",
}
COPY, SHUFFLED, LETTERS = "copy of ", "shuffled", "letters"


@dataclass(frozen=True)
class Pool:
    """Domains and what share of the text each has; targets; whether the pool is for choosing or for confirming."""

    name: str
    use: str
    seed: int
    sources: Mapping[str, float]
    targets: tuple[str, ...]


def name_of(source: str) -> str:
    """A domain's name from its source."""
    return source.replace(" ", "_")


@dataclass(frozen=True)
class PoolText:
    """A pool's text, tokenizer and sequences, written once."""

    pool: Pool
    folder: Path
    data: Path

    @cached_property
    def tokenizer(self) -> Any:
        texts = [t for s in self.pool.sources for t in self._read(name_of(s), "train")[:40]]
        return scratch.train_tokenizer(texts, VOCABULARY)

    @cached_property
    def sequences(self) -> dict[str, dict[str, PackedSequences]]:
        """By set, then by split; targets have no use for `train`."""
        made: dict[str, dict[str, PackedSequences]] = {}
        for name in (*map(name_of, self.pool.sources), *(f"target_{t}" for t in self.pool.targets)):
            files = {s: Source(paths=(str(self._file(name, s)),)) for s in ("train", "valid", "test")}
            tokens = prepare_domain(Domain(name=name, **files), self.tokenizer, cache_dir=self.folder / "tokens")
            made[name] = {s: PackedSequences(tokens[s], LENGTH) for s in ("train", "valid", "test")}
        return made

    def train(self) -> dict[str, PackedSequences]:
        return {name_of(s): self.sequences[name_of(s)]["train"] for s in self.pool.sources}

    def held_out(self, split: str, num: int) -> list[HeldOut]:
        """Rows of every set."""
        return [held_out(n, rows[split], num=num, seed=self.pool.seed) for n, rows in self.sequences.items()]

    def write(self) -> None:
        """All files of the pool.

        Raises:
            LookupError: A source that this machine does not have.
        """
        if (self.folder / "done").exists():
            return
        sources = {*map(original, self.pool.sources), *self.pool.targets} - {SHUFFLED, LETTERS}
        found = {s: kept_documents(s, self.data, self.folder.parent / "sources") for s in sorted(sources)}
        rng = np.random.default_rng(zlib.crc32(self.pool.name.encode()))
        for source, share in self.pool.sources.items():
            limits = {"train": int(share * POOL_BYTES), "valid": 40_000, "test": 60_000}
            for split, limit in limits.items():
                self._write(name_of(source), split, self._texts(source, split, limit, found, rng))
        for target in self.pool.targets:
            for split in ("train", "valid", "test"):  # nothing trains on a target; a domain wants the split
                self._write(
                    f"target_{target}",
                    split,
                    first_bytes(found[target]["valid" if split == "train" else split], 60_000),
                )
        (self.folder / "done").touch()

    def _texts(
        self,
        source: str,
        split: str,
        limit: int,
        found: Mapping[str, Mapping[str, list[str]]],
        rng: np.random.Generator,
    ) -> list[str]:
        if source == LETTERS:
            return list(random_letters(limit, rng))
        if source == SHUFFLED:
            others = [found[s][split] for s in self.pool.sources if s in found]
            words = " ".join(t for texts in others for t in first_bytes(texts, 40_000)).split()
            return [" ".join(rng.choice(words, 400)) for _ in range(max(2, limit // 2400))]
        texts = found[original(source)][split]
        if source.startswith(COPY) and split == "train":
            # Six tenths are documents that the original has, the rest are others of the same source.
            used = len(first_bytes(texts, int(self.pool.sources[original(source)] * POOL_BYTES)))
            return [*first_bytes(texts, int(0.6 * limit)), *first_bytes(texts[used:] or texts, int(0.4 * limit))]
        return first_bytes(texts, limit)

    def _file(self, name: str, split: str) -> Path:
        return self.folder / f"{name}.{split}.jsonl"

    def _write(self, name: str, split: str, texts: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file(name, split).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")

    def _read(self, name: str, split: str) -> list[str]:
        return [json.loads(line)["text"] for line in self._file(name, split).read_text(encoding="utf-8").splitlines()]


def original(source: str) -> str:
    """What a near-copy is of."""
    return source.removeprefix(COPY)


def kept_documents(source: str, data: Path, folder: Path) -> dict[str, list[str]]:
    """`documents`, read once."""
    file = folder / f"{source}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({s: first_bytes(texts, POOL_BYTES) for s, texts in documents(source, data).items()}),
            encoding="utf-8",
        )
    found: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def documents(source: str, data: Path) -> dict[str, list[str]]:
    """Pieces of a source's documents by split, in keyed-md5 order; the pieces of a document are in one split.

    Raises:
        LookupError: Not in `data`, and no package has it.
    """
    for kind in ("pretrain", "instruct"):
        folder = data / kind / source
        if folder.exists():
            rest, test = (list(read(folder / f"{s}.jsonl.gz")) for s in ("train", "valid"))
            return {
                "train": cut([t for t in rest if place(t) >= 8]),
                "valid": cut([t for t in rest if place(t) < 8]),
                "test": cut(test),
            }
    packaged = SUBSTITUTES.get(source, source)
    texts = list(dict.fromkeys(PACKAGED[packaged]())) if packaged in PACKAGED else []
    if not texts:
        raise LookupError(f"source {source!r} is neither in {data} nor in a package")
    bounds = {"train": (16, 100), "valid": (8, 16), "test": (0, 8)}
    return {split: cut([t for t in texts if low <= place(t) < high]) for split, (low, high) in bounds.items()}


def read(file: Path) -> Iterator[str]:
    """Texts of a JSON Lines file; a conversation is its turns, one after the other."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            yield row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"])


def place(text: str) -> int:
    """0 to 99, from the text alone."""
    return zlib.crc32(text.encode()) % 100


def cut(texts: list[str]) -> list[str]:
    """Pieces of at most PIECE characters, cut at line ends where there are any."""
    pieces = []
    for text in texts:
        while len(text) > PIECE:
            end = text.rfind("\n", PIECE // 2, PIECE) + 1 or PIECE
            pieces.append(text[:end].strip())
            text = text[end:]
        pieces.append(text.strip())
    kept = dict.fromkeys(p for p in pieces if len(p) >= 100)
    return sorted(kept, key=lambda p: hashlib.md5(p.encode(), usedforsecurity=False).digest())


def first_bytes(texts: list[str], limit: int) -> list[str]:
    """The first texts of at most so many bytes, at least two."""
    ends = np.cumsum([len(t.encode()) for t in texts])
    return texts[: max(2, int(np.searchsorted(ends, limit)))]


def random_letters(limit: int, rng: np.random.Generator) -> Iterator[str]:
    """Documents of random words of random letters."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    for _ in range(max(2, limit // 2200)):
        yield " ".join("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(350))
