"""Splitting held-out documents off a training source: by content, so order and copies do not matter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.domain import Domain, Split

_KEY = b"opmix held-out documents 1"
_HASH_RANGE = 1 << 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """Which split a document of the training source belongs to.

    Each document's text is hashed to a number in [0, 1): the first `holdout` of that range is `valid`'s, the
    next `test`'s, the rest `train`'s. A document therefore keeps its split when others are added, moved or
    dropped, and identical documents never end up in two splits.

    Examples:
        >>> rule = SplitRule(carved=("valid", "test"), holdout=0.25)
        >>> rule.split_of("a document") == rule.split_of("a document")
        True
    """

    carved: tuple[Split, ...]
    """The held-out sets that have no source of their own."""
    holdout: float
    """Share of the documents for each of them, in (0, 0.5)."""

    @classmethod
    def of(cls, domain: Domain) -> SplitRule:
        """The rule that a domain's missing sources ask for."""
        carved: tuple[Split, ...] = ("valid",) if domain.valid is None else ()
        carved += ("test",) if domain.test is None else ()
        return cls(carved=carved, holdout=domain.holdout)

    def split_of(self, document: str | npt.NDArray[np.integer[Any]]) -> Split:
        """The split of a document: text, token ids of shape (n,), or what stands for it."""
        if not self.carved:
            return "train"
        content = document.encode() if isinstance(document, str) else document.astype("<u4").tobytes()
        digest = hashlib.blake2b(content, digest_size=8, key=_KEY).digest()
        place = int.from_bytes(digest, "little") / _HASH_RANGE
        if place < self.holdout:
            return "valid" if "valid" in self.carved else "train"
        if place < 2 * self.holdout:
            return "test" if "test" in self.carved else "train"
        return "train"

    def describe(self, split: Split) -> str:
        """What of this rule the contents of `split` depend on; part of a cache's key."""
        if split in self.carved:
            return f"{split} at {self.holdout!r}"
        return f"without {self.carved} at {self.holdout!r}" if self.carved else "whole"
