"""Corpora that are trained on where they lie: files of token ids as one sequence, of which nothing is copied but held-out stripes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.data.sources import SourceFile, place
from opmix.data.split import SplitRule
from opmix.data.token_files import TokenFile, open_tokens
from opmix.domain import Split
from opmix.errors import DataError

Int64 = npt.NDArray[np.int64]
Stretch = tuple[int, int]
"""First token, and the one after the last."""

HELD_OUT_TOKENS = 1 << 20
"""Of each held-out set at most: copied, whatever share of the corpus `holdout` would be."""
_STRIPES = 16
"""Of each held-out set, evenly spread over the corpus."""
_SHORTEST_STRIPE = 1 << 14
_OPEN = 256
"""Files that are mapped at a time."""
_SAMPLES, _SAMPLE = 16, 1 << 14


class TokensInPlace:
    """The token ids of files, end to end, read where they are asked for; pickles as their names.

    Args:
        files: Of token ids.
        dtype: Of `bin` files; see `Source.dtype`.
        eos: The id that ends a document, where a format does not say.
        domain: Whose they are, for messages.
        parts: (n, 3) what counts of them: index of a file, its first token and the one after its last; None: all of all files.

    Raises:
        DataError: A file or its index is missing or damaged.
    """

    def __init__(
        self, files: Sequence[SourceFile], dtype: str, eos: int, domain: str, parts: Int64 | None = None
    ) -> None:
        self._files, self._dtype, self._eos, self._domain = tuple(files), dtype, eos, domain
        self._open: OrderedDict[int, TokenFile] = OrderedDict()
        if parts is None:
            parts = np.array([(i, 0, len(self._file(i).tokens)) for i in range(len(files))], dtype=np.int64)
        self._parts = parts[parts[:, 1] < parts[:, 2]]
        self._ends = np.cumsum(self._parts[:, 2] - self._parts[:, 1])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, part: slice) -> npt.NDArray[np.integer[Any]]:
        """A stretch of ids, (n,)."""
        first, last, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens[::{step}]: a stretch of tokens has step 1")
        found = [self._file(i).read(low, high) for _, i, low, high in self._inside(first, last)]
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def starts(self, first: int, last: int) -> Int64:
        """Where documents begin among the tokens `first` to before `last`, (m,); what follows a gap is taken for a document."""
        found = [np.zeros(0, dtype=np.int64)]
        for at, i, low, high in self._inside(first, last):
            begins = at == 0 or at == self._ends[int(np.searchsorted(self._ends, at))]
            inside = self._file(i).starts(low, high, self._eos) + at - low
            found.append(np.union1d([at] if begins else [], inside).astype(np.int64))
        return np.concatenate(found)

    def documents(self, stretches: Sequence[Stretch]) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """The documents of some stretches, without the ids that end them; an edge may cut one."""
        for first, last in stretches:
            edges = [first, *(start for start in self.starts(first, last).tolist() if start > first), last]
            for low, high in pairwise(edges):
                ids = np.array(self[low:high])
                if len(ids := ids[:-1] if ids[-1] == self._eos else ids):
                    yield ids

    def samples(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """A few stretches of ids, evenly spread."""
        for first in np.linspace(0, max(len(self) - _SAMPLE, 0), _SAMPLES, dtype=np.int64).tolist():
            yield self[first : first + _SAMPLE]

    def without(self, stretches: Sequence[Stretch]) -> TokensInPlace:
        """The rest, in the same order."""
        edges = [0, *(edge for stretch in sorted(stretches) for edge in stretch), len(self)]
        kept = zip(edges[::2], edges[1::2], strict=True)
        parts = [(i, low, high) for a, b in kept for _, i, low, high in self._inside(a, b)]
        found = np.array(parts, dtype=np.int64).reshape(-1, 3)
        return TokensInPlace(self._files, self._dtype, self._eos, self._domain, found)

    def _inside(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """Where a stretch lies: place of its piece in all tokens, file, first token and the one after the last in it."""
        which = int(np.searchsorted(self._ends, first, side="right"))
        while first < last:
            i, start, end = map(int, self._parts[which])
            low = end - (int(self._ends[which]) - first)
            high = min(end, low + last - first)
            assert start <= low < high
            yield first, i, low, high
            first, which = first + high - low, which + 1

    def _file(self, index: int) -> TokenFile:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        file = self._files[index]
        made = open_tokens(Path(file.path), file.format, self._dtype, place(self._domain, file.path))
        self._open[index] = made
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def held_out_stripes(tokens: TokensInPlace, rule: SplitRule, domain: str) -> dict[Split, list[Stretch]]:
    """What of a corpus is held out: stripes of whole documents, evenly spread, by split; no two overlap.

    Each set has `rule.holdout` of the tokens, at most `HELD_OUT_TOKENS`. Unlike a split by content, copies of a held-out document
    elsewhere in the corpus stay in training.

    Raises:
        DataError: The corpus is too small.
    """
    wanted = int(min(rule.holdout * len(tokens), HELD_OUT_TOKENS))
    each = max(1, min(_STRIPES, wanted // _SHORTEST_STRIPE))
    cells = each * len(rule.carved)
    if wanted < 1 or len(tokens) < 4 * cells:
        raise DataError(
            f"domain {domain!r}: {len(tokens)} tokens, of which {rule.holdout:g} cannot be held out; expected more; "
            "give valid and test sources of their own"
        )
    found: dict[Split, list[Stretch]] = {split: [] for split in rule.carved}
    for cell in range(cells):
        low, high = cell * len(tokens) // cells, (cell + 1) * len(tokens) // cells
        middle, length = (low + high) // 2, wanted // each
        first = _next_start(tokens, max(low, middle - length // 2), min(high - 1, middle + length // 2))
        last = _next_start(tokens, min(first + max(length, 1), high), min(first + 2 * length, high))
        found[rule.carved[cell % len(rule.carved)]].append((first, last))
    return found


def _next_start(tokens: TokensInPlace, first: int, last: int) -> int:
    """The first document that begins in a stretch; its beginning where none does."""
    starts = tokens.starts(first, last)
    return int(starts[0]) if len(starts) else first
