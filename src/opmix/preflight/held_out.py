"""Is there enough text to train on and to judge on, once held-out sets are split off?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opmix.data.chat.conversation import domain_kind
from opmix.data.in_place import HELD_OUT_TOKENS
from opmix.data.inspect.splits import empty_splits, split_shares
from opmix.data.inspect.survey import Size
from opmix.domain import Domain, Split
from opmix.preflight.checks import Findings, listed
from opmix.scaffold.render import HELD_OUT_SEQUENCES

_SLACK = 1.5
"""By which an estimate of tokens may be too low; what a chat template adds is not counted."""


def check_held_out(
    domains: Mapping[str, Domain],
    base: Path,
    sizes: Mapping[str, Mapping[Split, Size | None]],
    findings: Findings,
    *,
    length: int,
    wanted: int,
    judged: tuple[Split, ...],
    unpacked: bool,
) -> None:
    """Every split has documents, and what is judged on has sequences.

    Args:
        domains: As the configuration names them.
        base: Folder that relative paths start from.
        sizes: Domain, split: estimated text; domains that could not be read are missing.
        findings: Where problems go.
        length: Tokens of a sequence.
        wanted: Sequences that a set is asked for.
        judged: Held-out sets that are used.
        unpacked: Every conversation has a row of its own, whatever its domain says (self-distillation).
    """
    few: dict[str, str] = {}
    for name, splits in sizes.items():
        train, domain = splits.get("train"), domains[name].located(base)
        shares: Mapping[Split, float] | None = None
        if train is not None:
            with findings.catching(f"domains.{name}"):
                shares = split_shares(domain, train.documents)
                if empty := empty_splits(shares):
                    findings.fail(
                        f"domains.{name}",
                        f"{train.documents} documents; splitting held-out sets off leaves {', '.join(empty)} without "
                        "any",
                        "raise holdout, add documents, or give each held-out set a source",
                    )
            if train.row_tokens * _kept(domain, shares) < length:
                findings.fail(
                    f"domains.{name}.train",
                    f"about {train.row_tokens:,} tokens; a sequence has {length:,}",
                    "add text or shorten sequence_length",
                )
        for split in judged:
            found = _amount(domain, split, splits, shares)
            if found is None:
                continue
            (tokens, documents), remedy = found
            alone = domain_kind(domain) == "chat" and (unpacked or not domain.chat.packing)
            if alone and documents < 2:
                findings.fail(
                    f"domains.{name}.{split}", f"{documents} held-out conversations; expected at least two", remedy
                )
            elif not alone and _SLACK * tokens < 2 * length:
                findings.fail(
                    f"domains.{name}.{split}",
                    f"about {tokens:,} held-out tokens; expected at least two sequences of {length:,}",
                    f"{remedy}, or shorten sequence_length",
                )
            elif (rows := documents if alone else tokens // length) < min(wanted, HELD_OUT_SEQUENCES):
                few[name] = f"about {rows}"
    if few:
        findings.warn(
            "domains",
            f"few held-out sequences, so losses will be noisy: {listed(few)} (from "
            f"{min(wanted, HELD_OUT_SEQUENCES)} on it is not remarked on)",
            "raise holdout, add text, or shorten sequence_length",
        )


def _kept(domain: Domain, shares: Mapping[Split, float] | None) -> float:
    """Share of the training source that is left for training."""
    if shares is not None:
        return shares["train"]
    return 1 - domain.holdout * ((domain.valid is None) + (domain.test is None))


def _amount(
    domain: Domain, split: Split, splits: Mapping[Split, Size | None], shares: Mapping[Split, float] | None
) -> tuple[tuple[int, int], str] | None:
    """Tokens and documents of a held-out set, and what would make them more; None: not known."""
    if split in splits:
        held = splits[split]
        return None if held is None else ((held.row_tokens, held.documents), f"enlarge {split}")
    train = splits.get("train")
    if train is None:
        return None
    share = domain.holdout if shares is None else shares[split]
    tokens, documents = round(train.row_tokens * share), round(train.documents * share)
    if domain.train.in_place:
        return (min(tokens, HELD_OUT_TOKENS), documents), f"give {split} a source of its own"
    return (tokens, documents), "raise holdout, add text"
