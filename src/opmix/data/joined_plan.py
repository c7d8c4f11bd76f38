"""Plans one after the other, as one: what a stream is whose phases were planned in different ways."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opmix.data.sampler import Plan

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class JoinedPlan:
    """Plans one after the other, of which each goes on where the one before it ends; see `Plan`."""

    parts: tuple[Plan, ...]
    """At least one; the domains of each are the first of the next one's."""
    names: tuple[str, ...]
    available: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, index: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Domains and rows at some indices."""
        index = inside(index, len(self))
        domain, row = np.empty(index.shape, dtype=np.int64), np.empty(index.shape, dtype=np.int64)
        first = 0
        for part in self.parts:
            mine = (index >= first) & (index < first + len(part))
            if mine.any():
                domain[mine], row[mine] = part.at(index[mine] - first)
            first += len(part)
        return domain, row

    def __getitem__(self, part: slice) -> JoinedPlan:
        """A stretch of the stream."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"plan[::{step}]: a stretch of the stream has step 1")
        kept, first = [], 0
        for own in self.parts:
            end = first + len(own)
            if first < stop and end > start:
                kept.append(own[max(start - first, 0) : stop - first])
            first = end
        if not kept:  # nothing, of which it still counts where it is
            at = next((p for p in self.parts if start <= len(p) or not (start := start - len(p))), self.parts[-1])
            kept = [at[start:start]]
        return replace(self, parts=tuple(kept))

    @property
    def before(self) -> tuple[int, ...]:
        """Sequences of each domain drawn ahead of the first index."""
        known = self.parts[0].before
        return known + (0,) * (len(self.names) - len(known))

    def cursors(self) -> dict[str, int]:
        """Sequences of each domain drawn up to the end of this stretch, those before it included."""
        return {**dict.fromkeys(self.names, 0), **self.parts[-1].cursors()}

    def counts(self) -> dict[str, int]:
        """Sequences drawn of each domain."""
        each = [part.counts() for part in self.parts]
        return {name: sum(counts.get(name, 0) for counts in each) for name in self.names}

    @property
    def fingerprint(self) -> str:
        """Hash of the parts'."""
        parts = (self.names, self.available, [part.fingerprint for part in self.parts])
        return hashlib.blake2b(repr(("joined-1", *parts)).encode(), digest_size=16).hexdigest()


def inside(index: npt.ArrayLike, length: int) -> Int64:
    """Indices as an array, negative ones from the end.

    Raises:
        IndexError: One is outside.
    """
    found = np.asarray(index, dtype=np.int64)
    found = np.where(found < 0, found + length, found)
    if found.size and (found.min() < 0 or found.max() >= length):
        raise IndexError(f"sequence {int(found.max())} of {length}")
    return found
