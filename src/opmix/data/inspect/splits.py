"""Held-out sets of small domains: with few documents, a share of them may be none at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from opmix.data.chat.conversation import domain_kind, iter_conversations
from opmix.data.choice import iter_questions
from opmix.data.sources import TOKEN_FORMATS, iter_documents, resolve
from opmix.data.split import SplitRule
from opmix.domain import Domain, Split

FEW = 1000
"""Documents up to which the split is tried out; with more, no share anybody would set leaves a set empty."""
_SHARES = (0.05, 0.1, 0.2, 0.3)


def empty_splits(domain: Domain, documents: int) -> tuple[Split, ...]:
    """The splits that dividing a domain's training source would leave without documents.

    Args:
        domain: The domain.
        documents: How many documents `train` has, about.

    Returns:
        Their names; none where the source is large, is never divided, or holds token ids or a hub dataset.

    Raises:
        DataError: The source cannot be read.
    """
    rule = SplitRule.of(domain)
    kinds = {file.format for file in resolve(domain.train, domain=domain.name)}
    if not rule.carved or documents > FEW or kinds & {*TOKEN_FORMATS, "hub"}:
        return ()
    keys: Iterator[str]
    if domain.kind == "choice":
        keys = (question.key for question in iter_questions(domain.train, domain=domain.name))
    elif domain_kind(domain) == "chat":
        keys = (chat.prompt_key for chat in iter_conversations(domain.train, domain=domain.name))
    else:
        keys = iter_documents(domain.train, domain=domain.name)
    if domain.train.max_tokens is not None:  # no further than the source is read
        keys = islice(keys, documents)
    counts = Counter(map(rule.split_of, keys))
    return tuple(split for split in ("train", *rule.carved) if not counts[split])


def workable_holdout(domain: Domain, documents: int) -> float | None:
    """The smallest usual share that gives every held-out set a document; None if there is none.

    Raises:
        DataError: The source cannot be read.
    """
    return next((share for share in _SHARES if not empty_splits(replace(domain, holdout=share), documents)), None)
