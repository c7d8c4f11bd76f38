"""Conversations as rows: several whole ones packed into each, or one to a row; over-long ones cut only where it was said."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.data.cache import TokenSplit
from opmix.data.rows import IGNORED, Int64, pad_right
from opmix.domain import ChatOptions, Truncate
from opmix.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """What became of a split's conversations."""

    conversations: int
    truncated: int
    """Longer than a row, and cut."""
    dropped: int
    """Longer than a row and not to be cut, cut down to nothing supervised, or without room for their teacher's context."""

    def note(self, name: str, length: int, truncate: Truncate) -> str | None:
        """A sentence for the reader of a report, if anything was lost."""
        if not self.truncated and not self.dropped:
            return None
        where = "" if truncate == "drop" else f" on the {truncate}"
        told = [f"{self.truncated} are cut{where}"] if self.truncated else []
        told += [f"{self.dropped} are left out"] if self.dropped else []
        return (
            f"{name}: {' and '.join(told)} of {self.conversations} conversations, longer than {length} tokens; "
            "a longer sequence_length keeps them"
        )


class ChatRows:
    """A split of conversations as rows of at most `sequence_length` tokens.

    Packed rows hold whole conversations, best fit first; their positions restart at each, which keeps attention inside it.

    Args:
        split: With a mask.
        sequence_length: T.
        options: Packing, and what over-long conversations lose.
        keep: (num_documents,) which conversations may stay; None: all.

    Raises:
        DataError: The split has no mask, or no conversation fits.
    """

    conversations = True

    def __init__(
        self,
        split: TokenSplit,
        sequence_length: int,
        options: ChatOptions,
        *,
        keep: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        if split.mask is None:
            raise DataError(
                f"domain {split.domain!r} {split.split} holds text; expected conversations; use its PackedSequences"
            )
        self.split, self.sequence_length, self.options = split, sequence_length, options
        self._mask = split.mask
        first, last, self.report = _windows(split, sequence_length, options.truncate, keep)
        if not len(first):
            raise DataError(
                f"domain {split.domain!r} {split.split}: none of {self.report.conversations} conversations fits into "
                "sequence_length "
                f"{sequence_length}; raise it, or set `truncate` to left or right"
            )
        if options.packing:
            rows = best_fit(last - first, sequence_length)
            order = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
            counts = np.array([len(row) for row in rows])
        else:
            order, counts = np.arange(len(first)), np.ones(len(first), dtype=np.int64)
        self._first, self._last, self.documents = first[order], last[order], self._kept(first, order)
        self._ends = np.cumsum(counts)
        self.lengths = np.add.reduceat(self._last - self._first, self._ends - counts).astype(np.int64)
        # The first token of a conversation has nothing before it to be predicted from.
        sums = np.concatenate([[0], np.cumsum(self._mask, dtype=np.int64)])
        worth = sums[self._last] - sums[self._first + 1]
        self.supervised = np.add.reduceat(worth, self._ends - counts).astype(np.int64)

    def _kept(self, first: Int64, order: Int64) -> Int64:
        documents = np.searchsorted(np.asarray(self.split.offsets), first, side="right") - 1
        return np.asarray(documents[order], dtype=np.int64)

    @property
    def restarts(self) -> bool:
        """Whether a row may hold several conversations."""
        return self.options.packing

    def __len__(self) -> int:
        return len(self._ends)

    def members(self, index: int) -> range:
        """The conversations of a row: indices into `documents`."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return range(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))

    def window(self, member: int) -> slice:
        """Where a conversation, as far as it is kept, lies in the split's tokens."""
        return slice(int(self._first[member]), int(self._last[member]))

    def __getitem__(self, index: int) -> Int64:
        """Token ids, (t,)."""
        parts = [self.split.tokens[self.window(m)] for m in self.members(index)]
        return np.concatenate(parts).astype(np.int64)

    def labels(self, index: int) -> Int64:
        """Token ids where supervised, else -100, (t,)."""
        parts = []
        for member in self.members(index):
            window = self.window(member)
            part = np.where(self._mask[window] == 1, self.split.tokens[window].astype(np.int64), IGNORED)
            part[0] = IGNORED
            parts.append(part)
        return np.concatenate(parts)

    def position_ids(self, index: int) -> Int64:
        """Positions that restart at each conversation, (t,)."""
        sizes = [self._last[m] - self._first[m] for m in self.members(index)]
        return np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])

    def batch(self, indices: npt.ArrayLike) -> Int64:
        """Token ids of several rows, (n, t), shorter ones padded on the right."""
        return pad_right([self[int(i)] for i in np.asarray(indices)], "input_ids")

    def num_bytes(self, index: int) -> float:
        """UTF-8 bytes of the supervised text; a conversation that was cut counts by its share of supervised tokens."""
        total = 0.0
        for member in self.members(index):
            document = int(self.documents[member])
            whole = self._mask[int(self.split.offsets[document]) : int(self.split.offsets[document + 1])].sum()
            share = self._mask[self.window(member)].sum() / max(int(whole), 1)
            total += float(self.split.byte_counts[document]) * float(share)
        return total


def _windows(
    split: TokenSplit, length: int, truncate: Truncate, keep: npt.NDArray[np.bool_] | None
) -> tuple[Int64, Int64, RowReport]:
    """First and last token of what is kept of each conversation that stays."""
    first, last = np.array(split.offsets[:-1], dtype=np.int64), np.array(split.offsets[1:], dtype=np.int64)
    num = len(first)
    long = last - first > length
    if truncate == "left":
        first = np.where(long, last - length, first)
    elif truncate == "right":
        last = np.where(long, first + length, last)
    sums = np.concatenate([[0], np.cumsum(np.asarray(split.mask), dtype=np.int64)])
    stays = sums[last] - sums[np.minimum(first + 1, last)] > 0
    if truncate == "drop":
        stays &= ~long
    if keep is not None:
        stays &= keep
    cut = int((long & stays).sum())
    return first[stays], last[stays], RowReport(conversations=num, truncated=cut, dropped=num - int(stays.sum()))


def best_fit(sizes: Int64, capacity: int) -> list[list[int]]:
    """Pack items into bins: longest first, each into the fullest bin that still has room; ties by index.

    Examples:
        >>> best_fit(np.array([3, 5, 2, 4]), 7)
        [[1, 2], [3, 0]]
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        place = bisect_left(rooms, (size, -1))
        if place < len(rooms):
            room, chosen = rooms.pop(place)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        if room > size:
            insort(rooms, (room - size, chosen))
    return bins
