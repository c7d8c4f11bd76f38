"""Held-out sets of small domains: with few documents, a share of them may be none at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def split_shares(domain: Domain, documents: int) -> Mapping[Split, float] | None:
    """What share of a small training source goes to each split: of a text's characters, else of the rows.

    Few documents of unequal length are divided very unequally, whatever `holdout` says.

    Args:
        domain: The domain.
        documents: How many documents `train` has, about.

    Returns:
        Shares that add up to 1; None where the source is large, is never divided, or holds token ids or a hub dataset.

    Raises:
        DataError: The source cannot be read.
    """
    rule = SplitRule.of(domain)
    kinds = {file.format for file in resolve(domain.train, domain=domain.name)}
    if not rule.carved or documents > FEW or kinds & {*TOKEN_FORMATS, "hub"}:
        return None
    rows: Iterator[tuple[str, int]]
    if domain.kind == "choice":
        rows = ((question.key, 1) for question in iter_questions(domain.train, domain=domain.name))
    elif domain_kind(domain) == "chat":
        rows = ((chat.prompt_key, 1) for chat in iter_conversations(domain.train, domain=domain.name))
    else:
        rows = ((text, len(text)) for text in iter_documents(domain.train, domain=domain.name))
    if domain.train.max_tokens is not None:  # no further than the source is read
        rows = islice(rows, documents)
    found: dict[Split, float] = dict.fromkeys(("train", *rule.carved), 0.0)
    for key, size in rows:
        found[rule.split_of(key)] += size
    total = sum(found.values())
    return {split: size / total for split, size in found.items()} if total else found


def empty_splits(shares: Mapping[Split, float] | None) -> tuple[Split, ...]:
    """Splits that get no document; none where `split_shares` does not know."""
    return tuple(split for split, share in (shares or {}).items() if not share)


def workable_holdout(domain: Domain, documents: int) -> float | None:
    """The smallest usual share that gives every held-out set a document; None if there is none.

    Raises:
        DataError: The source cannot be read.
    """
    return next(
        (share for share in _SHARES if not empty_splits(split_shares(replace(domain, holdout=share), documents))), None
    )
