"""Targets, as far as they can be known before anything is trained: their text, whether it is enough, and that it is not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opmix.config import SearchSettings
from opmix.data.choice import target_kind
from opmix.data.inspect.splits import empty_splits, split_shares
from opmix.data.inspect.survey import Size, survey
from opmix.data.overlap import overlaps
from opmix.domain import Domain, Split
from opmix.errors import OpMixError
from opmix.mixture_search.estimate import DomainSize
from opmix.preflight.checks import Findings
from opmix.scores.task_questions import without_tasks
from opmix.settings import changed
from opmix.target import Targets, naming_target
from opmix.training.stage_data import check_apart

TargetSizes = dict[str, dict[Split, Size | None]]
"""Target, split (`valid` chooses, `test` judges): how much text; None where nothing here can tell (hub datasets)."""
ENOUGH_TOKENS = 8_000
"""Of a target's text: with a quarter of it searches gained 9 instead of 13 % (docs/evidence.md, "Mixtures for targets")."""


def check_targets(
    targets: Targets,
    domains: Mapping[str, Domain],
    base: Path,
    tokenizer: Any,
    findings: Findings,
    settings: SearchSettings,
    *,
    template: bool,
) -> TargetSizes:
    """Every target can be read, has enough text, and is none of the training text; what is told of each.

    Args:
        targets: By name.
        domains: What is trained on; relative paths resolved.
        base: Folder of the configuration.
        tokenizer: The model's; None: not known.
        findings: Where problems go.
        settings: Of the search: sequence length, held-out sequences asked for, cache of tokenised data.
        template: Whether the configuration gives a chat template.
    """
    length, wanted = settings.sequence_length, settings.proxies.eval_sequences
    cache_dir = None if settings.cache_dir is None else Path(settings.cache_dir)
    sizes: TargetSizes = {}
    read: Targets = {}
    with findings.catching("targets"):
        read = without_tasks(targets, base, cache_dir)
    for name, target in read.items():
        with findings.catching(f"targets.{name}"), naming_target(name):
            domain = target.domain(name, base)
            domain = changed(domain, kind=target_kind(domain))
            if domain.kind == "chat" and tokenizer is not None and not (template or tokenizer.chat_template):
                findings.fail(
                    f"targets.{name}",
                    "holds conversations, and the tokenizer has no chat template",
                    "name a Jinja file as model.chat_template, or use a model that has one",
                )
            found = _surveyed(domain, tokenizer, findings)
            _check_amount(domain, found, length, wanted, findings)
            sizes[name] = found
    with findings.catching("targets"):
        readable = {n: d for n, d in domains.items() if _resolves(n, d)}
        aims = {n: read[n].domain(n, base) for n in sizes}
        check_apart(readable, aims)
        for overlap in overlaps(readable, aims):
            said, _, remedy = str(overlap).partition(": take ")
            findings.warn(f"targets.{overlap.target}", said.partition(": ")[2], f"take {remedy}")
    if targets and len(sizes) == len(targets):
        told = ", ".join(_told(name, size, length) for name, size in sizes.items())
        findings.ok("targets", f"{len(sizes)}, never trained on: {told}")
    return sizes


def target_rows(sizes: TargetSizes, length: int) -> dict[str, DomainSize]:
    """Rows of targets as an estimate of cost wants them; those that nothing can tell of are left out."""
    known = {name: size for name, splits in sizes.items() if (size := splits.get("valid")) is not None}
    return {
        name: DomainSize(row=length, supervised=length, held_out=max(1, size.row_tokens // length), held_out_row=length)
        for name, size in known.items()
    }


def _surveyed(domain: Domain, tokenizer: Any, findings: Findings) -> dict[Split, Size | None]:
    """`valid` and `test` of a target; a test that will be split off is taken from `valid`."""
    kind = domain.kind or "text"
    whole = survey(domain.train, domain=domain.name, kind=kind, tokenizer=tokenizer)
    if domain.test is not None:
        return {"valid": whole, "test": survey(domain.test, domain=domain.name, kind=kind, tokenizer=tokenizer)}
    shares = None if whole is None else split_shares(domain, whole.documents)
    if whole is not None and (empty := empty_splits(shares)):
        findings.fail(
            f"targets.{domain.name}",
            f"{whole.documents} documents; splitting a test off leaves {'valid' if 'train' in empty else 'test'} "
            "without any",
            "give test, or more documents",
        )
    held = domain.holdout if shares is None else shares["test"]
    return {"valid": _part(whole, 1 - held), "test": _part(whole, held)}


def _part(size: Size | None, share: float) -> Size | None:
    if size is None:
        return None
    numbers = {n: round(getattr(size, n) * share) for n in ("documents", "text_bytes", "tokens", "row_tokens")}
    return Size(files=size.files, stored_bytes=size.stored_bytes, exact=False, **numbers)


def _check_amount(
    domain: Domain, found: Mapping[Split, Size | None], length: int, wanted: int, findings: Findings
) -> None:
    """Enough sequences, or questions, to compare models on."""
    questions = domain.kind == "choice"
    what = "questions" if questions else f"sequences of {length:,} tokens"
    for split, size in found.items():
        if size is None:
            continue
        where, have = f"targets.{domain.name}.{split}", size.documents if questions else size.row_tokens // length
        if have < 2:
            findings.fail(where, f"about {have} {what}; expected at least two", "give it more text")
        elif split == "valid" and have < wanted:
            said = f"about {have} {what} of the {wanted} asked for; losses will be noisier"
            findings.warn(where, said, "give it more text")
        elif split == "valid" and not questions and wanted * length < ENOUGH_TOKENS:
            said = (
                f"{wanted * length:,} tokens of it are read; from less than {ENOUGH_TOKENS:,} a law can point wrongly"
            )
            findings.warn(where, said, f"raise proxies.eval_sequences to {-(-ENOUGH_TOKENS // length)}")


def _told(name: str, splits: Mapping[Split, Size | None], length: int) -> str:
    size = splits.get("valid")
    if size is None:
        return f"{name} (size not known)"
    return f"{name} about {size.row_tokens:,} tokens, {max(1, size.row_tokens // length)} sequences"


def _resolves(name: str, domain: Domain) -> bool:
    """Whether a domain's own files are there; that they are not is said of the domain."""
    from opmix.data.sources import resolve

    try:
        resolve(domain.train, domain=name)
    except OpMixError:
        return False
    return True
