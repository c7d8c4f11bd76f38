"""Documents end to end, cut into equal sequences; where documents begin is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.data.cache import TokenSplit
from opmix.data.rows import Rows
from opmix.errors import DataError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedSequences:
    """A split as sequences of `sequence_length` tokens: rows of a matrix that lies on disk.

    Documents are separated by EOS and may span sequences; the rest after the last whole sequence is left out.

    Raises:
        DataError: The split has fewer tokens than one sequence.
    """

    split: TokenSplit
    sequence_length: int

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise DataError(f"sequence_length: {self.sequence_length}; expected at least 2")
        if self.split.mask is not None:
            raise DataError(
                f"domain {self.split.domain!r} {self.split.split} holds conversations; expected text: conversations "
                "are cut into "
                "ChatRows, and need `objective: sft` or `sdft`"
            )
        if len(self) == 0:
            raise DataError(
                f"domain {self.split.domain!r} {self.split.split} has {self.split.num_tokens} tokens, a sequence needs "
                f"{self.sequence_length}; give it more text or a shorter sequence_length"
            )

    def __len__(self) -> int:
        return int(self.split.num_tokens // self.sequence_length)

    def __getitem__(self, index: int) -> Int64:
        """Token ids of one sequence, (T,)."""
        first = self._first(index)
        return np.asarray(self.split.tokens[first : first + self.sequence_length], dtype=np.int64)

    def batch(self, indices: npt.ArrayLike) -> Int64:
        """Token ids of several sequences, (n, T)."""
        return np.stack([self[int(i)] for i in np.asarray(indices)])

    def _first(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return index * self.sequence_length

    def boundaries(self, index: int) -> Int64:
        """Positions inside the sequence at which a document begins."""
        first = self._first(index)
        return self.split.starts(first, first + self.sequence_length) - first

    @property
    def lengths(self) -> Int64:
        """Tokens of each sequence, (n,)."""
        return np.broadcast_to(np.int64(self.sequence_length), len(self))  # one number, however many there are

    @property
    def supervised(self) -> Int64:
        """Tokens of each sequence that count as supervised, (n,): all."""
        return self.lengths

    @property
    def conversations(self) -> bool:
        """Whether these are conversations, whose positions must be told."""
        return False

    @property
    def restarts(self) -> bool:
        """Whether positions must restart inside a row: only if the user wants it (`document_mask`)."""
        return False

    def labels(self, index: int) -> Int64:
        """What is to be predicted, (T,): every token."""
        return self[index]

    def position_ids(self, index: int) -> Int64:
        """Positions that restart at each document, (T,)."""
        positions = np.arange(self.sequence_length, dtype=np.int64)
        for start in self.boundaries(index):
            positions[start:] = np.arange(self.sequence_length - start)
        return positions

    def num_bytes(self, index: int) -> float:
        """UTF-8 bytes of the sequence; a document cut by its edge counts by its share of tokens. NaN: not known."""
        if not self.split.counted:
            return float("nan")
        first = self._first(index)
        last = first + self.sequence_length
        offsets = self.split.offsets
        low = int(np.searchsorted(offsets, first, side="right")) - 1
        high = int(np.searchsorted(offsets, last, side="left"))
        starts, ends = np.asarray(offsets[low:high]), np.asarray(offsets[low + 1 : high + 1])
        inside = np.minimum(ends, last) - np.maximum(starts, first)
        return float(np.sum(np.asarray(self.split.byte_counts[low:high]) * inside / np.maximum(ends - starts, 1)))


def held_out_batch(packed: Rows, num_sequences: int, seed: int) -> Int64:
    """Sequences to evaluate on: evenly spread over the split, without replacement, shifted by the seed."""
    total = len(packed)
    num = min(num_sequences, total)
    shift = np.random.default_rng(seed).random()
    rows: Int64 = np.floor((np.arange(num) + shift) * total / num).astype(np.int64)
    return np.minimum(rows, total - 1)
