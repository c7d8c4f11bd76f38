"""Rows: what trainers and evaluation see of a domain, be it text or conversations.

A row is a sample; a mixture is a share of *supervised tokens*. The two must not be confused: `len(rows)` counts samples, `rows.supervised`
says how many supervised tokens each is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from opmix.data.cache import TokenSplit

Int64 = npt.NDArray[np.int64]

IGNORED = -100
"""Label of a token that nothing is learned from (torch's and transformers' number)."""


class Rows(Protocol):
    """Sequences of one split, ready for a batch."""

    @property
    def split(self) -> TokenSplit:
        """Where they come from."""

    @property
    def sequence_length(self) -> int:
        """Tokens of a row at most."""

    @property
    def conversations(self) -> bool:
        """Whether rows hold conversations: positions restart, and lengths differ."""

    @property
    def restarts(self) -> bool:
        """Whether positions restart inside a row, so that attention must heed them."""

    @property
    def lengths(self) -> Int64:
        """Tokens of each row, (n,)."""

    @property
    def supervised(self) -> Int64:
        """Supervised tokens of each row, (n,)."""

    def __len__(self) -> int:
        """Rows."""

    def __getitem__(self, index: int) -> Int64:
        """Token ids of a row, (t,)."""

    def labels(self, index: int) -> Int64:
        """Token ids where supervised, else -100, (t,)."""

    def position_ids(self, index: int) -> Int64:
        """Positions that restart where attention must not reach back, (t,)."""

    def batch(self, indices: npt.ArrayLike) -> Int64:
        """Token ids of several rows, (n, t), shorter ones padded on the right."""

    def num_bytes(self, index: int) -> float:
        """UTF-8 bytes of a row's supervised text."""


def pad_right(rows: Sequence[Int64], what: str) -> Int64:
    """Rows of one kind as a matrix (n, longest row).

    Padding is token 0 with label -100 and positions from 0: a causal model cannot see it from the left, and it sees only itself.

    Args:
        rows: n arrays (t_i,).
        what: `input_ids`, `labels` or `position_ids`.
    """
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), IGNORED if what == "labels" else 0, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
        if what == "position_ids":
            line[len(row) :] = np.arange(width - len(row))
    return padded


def total(each: Int64) -> int:
    """Sum of tokens, (n,); of one number for all rows at once, however many there are."""
    return int(each[0]) * len(each) if len(each) and each.strides == (0,) else int(each.sum())


def supervised_per_row(rows: Rows) -> float:
    """Mean supervised tokens of a row."""
    return total(rows.supervised) / len(rows)
