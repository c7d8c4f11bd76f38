"""Questions as tokens and rows.

A question is one document in the cache: the right option first, then the others, each its context (mask 0) and how it goes on (mask 1).
So a document's options begin where a 0 follows a 1, and nothing else has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from opmix.data.cache import TokenSplit
from opmix.data.choice.question import Question
from opmix.data.rows import IGNORED, Int64
from opmix.data.tokenization import Document, Encoded, eos_id
from opmix.errors import DataError

FORMAT = "choice-1"
"""Part of the cache's key."""


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], *, bos: int | None = None
) -> Encoded:
    """Tokenise n questions; `bos` begins every context, and an end of sequence an empty one: something must be before what is scored."""
    start = eos_id(tokenizer) if bos is None else bos
    ids: list[list[int]] = []
    mask: list[list[int]] = []
    sizes = []
    for question in (d for d in documents if isinstance(d, Question)):
        answer = question.options[question.answer]
        others = [option for i, option in enumerate(question.options) if i != question.answer]
        row: list[int] = []
        scored: list[int] = []
        for context, option in (answer, *others):
            before, after = _apart(tokenizer, context, option)
            before = before if bos is None and before else [start, *before]
            row += [*before, *after]
            scored += [*[0] * len(before), *[1] * len(after)]
        ids.append(row)
        mask.append(scored)
        sizes.append(len(answer[1].encode()))
    return Encoded(
        ids=np.array([i for row in ids for i in row], dtype=np.uint32),
        lengths=np.array([len(row) for row in ids], dtype=np.int64),
        byte_counts=np.array(sizes, dtype=np.int64),
        mask=np.array([m for row in mask for m in row], dtype=np.uint8),
    )


def _apart(tokenizer: Any, context: str, option: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of how it goes on, as they are together where that can be told (as lm-evaluation-harness does)."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, option = context[:-spaces], context[-spaces:] + option
    whole, before = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (context + option, context))
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, list(tokenizer(option, add_special_tokens=False)["input_ids"])


class ChoiceRows:
    """A split of questions; row i is question i. A context that is too long loses its start.

    Args:
        split: With a mask, as `encode_questions` makes it.
        sequence_length: T, tokens of a context and an option at most.

    Raises:
        DataError: No question has options that fit.
    """

    conversations = True
    restarts = False

    def __init__(self, split: TokenSplit, sequence_length: int) -> None:
        self.split, self.sequence_length = split, sequence_length
        if split.mask is None:
            raise DataError(f"domain {split.domain!r} {split.split} holds text; expected questions with options")
        mask, self._offsets = np.asarray(split.mask), np.asarray(split.offsets)
        starts = np.flatnonzero((mask == 0) & (np.concatenate([[1], mask[:-1]]) == 1))
        self._starts = np.union1d(starts, self._offsets[:-1])
        self._kept = np.array([i for i in range(split.num_documents) if self._fits(i)], dtype=np.int64)
        if not len(self._kept):
            raise DataError(
                f"domain {split.domain!r} {split.split}: none of {split.num_documents} questions has options of fewer "
                f"than {sequence_length} tokens; raise sequence_length"
            )

    def options(self, index: int) -> list[tuple[Int64, Int64]]:
        """Tokens and labels (-100 where not scored), (t,) each, of a question's options, the right one first."""
        return [self._option(window) for window in self._windows(int(self._kept[index]))]

    def _windows(self, document: int) -> list[slice]:
        first, last = self._offsets[document], self._offsets[document + 1]
        low, high = np.searchsorted(self._starts, [first, last])
        edges = [*self._starts[low:high].tolist(), int(last)]
        return [slice(max(a, b - self.sequence_length), b) for a, b in pairwise(edges)]

    def _fits(self, document: int) -> bool:
        """Whether each option leaves room for a token before it."""
        mask = np.asarray(self.split.mask)
        return all(mask[window.start] == 0 for window in self._windows(document))

    def _option(self, window: slice) -> tuple[Int64, Int64]:
        ids = np.asarray(self.split.tokens[window]).astype(np.int64)
        return ids, np.where(np.asarray(self.split.mask)[window] == 1, ids, IGNORED)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Int64:
        """Token ids of all options of a question, (t,)."""
        return np.concatenate([ids for ids, _ in self.options(index)])

    def labels(self, index: int) -> Int64:
        """Token ids where scored, else -100, (t,)."""
        return np.concatenate([labels for _, labels in self.options(index)])

    def position_ids(self, index: int) -> Int64:
        """Positions that restart at each option, (t,)."""
        return np.concatenate([np.arange(len(ids), dtype=np.int64) for ids, _ in self.options(index)])

    @cached_property
    def lengths(self) -> Int64:
        """Tokens of each question's options, (n,)."""
        return np.array([len(self[i]) for i in range(len(self))], dtype=np.int64)

    @property
    def compared(self) -> bool:
        """Whether questions have options to choose from; else each answer is scored by its own tokens."""
        return any(len(self._windows(int(i))) > 1 for i in self._kept)

    @property
    def supervised(self) -> Int64:
        """One a question: each is one loss."""
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: npt.ArrayLike) -> Int64:
        """Not to be had: a question is several sequences.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"domain {self.split.domain!r}: questions are compared, not trained on; use a `kind: chat` domain"
        )

    def num_bytes(self, index: int) -> float:
        """UTF-8 bytes of the right option."""
        return float(self.split.byte_counts[self._kept[index]])
