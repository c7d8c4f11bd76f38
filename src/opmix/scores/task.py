"""The score of a model on held-out conversations: the share of last answers that are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from opmix.data import TokenSplit
from opmix.errors import DataError
from opmix.models.layers import base_model_of
from opmix.runs.trace import span
from opmix.scores.extract import Extractor
from opmix.scores.generate import Int64, greedy_answers
from opmix.scores.intervals import wilson


@dataclass(frozen=True, kw_only=True)
class Score:
    """Right answers of a number of questions."""

    name: str
    right: int
    total: int
    interval: tuple[float, float]
    """Wilson's, of the share."""
    level: float
    left_out: int
    """Questions too long for the model."""
    unreadable: int
    """Answers in which nothing was found to compare; they count as wrong."""
    outcomes: Mapping[int, bool] = field(default_factory=dict)
    """Right or not, by document of the split: what two models are compared on."""

    @property
    def share(self) -> float:
        """Of right answers."""
        return self.right / self.total

    def json(self) -> dict[str, Any]:
        """As a mapping, without the outcomes."""
        content = {key: value for key, value in asdict(self).items() if key != "outcomes"}
        return {**content, "share": self.share}


def question_and_answer(split: TokenSplit, document: int) -> tuple[Int64, Int64]:
    """Token ids before the last answer of a conversation, and of that answer.

    Raises:
        DataError: The split holds text.
    """
    if split.mask is None:
        raise DataError(f"domain {split.domain!r} {split.split} holds text; expected conversations to ask from")
    window = slice(int(split.offsets[document]), int(split.offsets[document + 1]))
    ids, mask = split.tokens[window].astype(np.int64), np.asarray(split.mask[window], dtype=np.int8)
    first = int(np.flatnonzero(np.diff(mask, prepend=0) == 1)[-1])
    return ids[:first], ids[first:][mask[first:] == 1]


@span("ask for answers", "evaluating")
def score_split(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    split: TokenSplit,
    extract: Extractor,
    *,
    stop_ids: tuple[int, ...],
    num: int | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    level: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Ask a model the last question of each conversation and compare its answer with the one there.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        split: Conversations, tokenised.
        extract: What is compared, see `extractor_of`.
        stop_ids: Tokens that end an answer, see `opmix.training.stage_data.stop_ids`.
        num: Questions, evenly spread over the split; None: all.
        max_new_tokens: Most tokens of an answer.
        batch_size: Questions at a time.
        level: Of the interval.
        progress: Told how many are done.

    Raises:
        DataError: The split holds text, nothing can be compared in a reference, or no question fits into the model.
    """
    total = split.num_documents
    chosen = (
        range(total) if num is None or num >= total else ((np.arange(num) + 0.5) * total / num).astype(int).tolist()
    )
    limit = getattr(base_model_of(model).config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    pairs = [question_and_answer(split, document) for document in chosen]
    asked = [i for i, (question, _) in enumerate(pairs) if len(question) + max_new_tokens <= limit]
    fitting = [pairs[i] for i in asked]
    if not fitting:
        raise DataError(
            f"domain {split.domain!r} {split.split}: none of {len(pairs)} questions leaves room for {max_new_tokens} "
            "tokens in the "
            f"model's {limit}; lower max_new_tokens"
        )
    references = [extract(tokenizer.decode(answer, skip_special_tokens=True)) for _, answer in fitting]
    if None in references:
        text = tokenizer.decode(fitting[references.index(None)][1], skip_special_tokens=True)
        raise DataError(
            f"domain {split.domain!r} {split.split}: the extractor finds nothing in the reference {text[:80]!r}; "
            "expected something to compare in each; use another extractor"
        )
    answers = greedy_answers(
        model,
        [question for question, _ in fitting],
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    found = [extract(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
    outcomes = {chosen[i]: a == b for i, a, b in zip(asked, found, references, strict=True)}
    right = sum(outcomes.values())
    return Score(
        name=split.domain,
        right=right,
        total=len(found),
        interval=wilson(right, len(found), level=level),
        level=level,
        left_out=len(pairs) - len(fitting),
        unreadable=found.count(None),
        outcomes=outcomes,
    )
