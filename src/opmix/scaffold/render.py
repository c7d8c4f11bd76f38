"""A configuration as a person would write it: with comments that say where each number comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from opmix.data.inspect.survey import BYTES_PER_TOKEN
from opmix.domain import SPLITS, Source, hub_address
from opmix.scaffold.domains import DomainDraft
from opmix.scaffold.targets import TargetDraft

HELD_OUT_SEQUENCES = 16
"""Held-out sequences that the smallest domain should yield at the chosen length."""
PROBE_EPOCHS = 1.5
"""How often a probe may read its domain: beyond, its gain is over-estimated. What `opmix validate` remarks on, too."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a first configuration."""

    file: str
    """Name of the configuration."""
    model: str
    has_model: bool
    tokens: int
    given: bool
    """Whether somebody asked for `tokens`."""
    total: int
    """Training tokens that all domains hold together."""
    length: int
    steps: int
    batch: int
    counted: bool
    """Whether the model's own tokenizer counted."""


def render(
    drafts: Sequence[DomainDraft],
    settings: Settings,
    *,
    places: Sequence[str | Path],
    base: Path,
    targets: Sequence[TargetDraft] = (),
) -> str:
    """The text of `search.yaml`; paths relative to `base` unless one of `places` was given as an absolute path."""
    relative = not any(Path(place).is_absolute() for place in places)
    how = (
        "the model's tokenizer, on samples"
        if settings.counted
        else f"{BYTES_PER_TOKEN:g} bytes a token; the model's tokenizer may differ"
    )
    lines = [
        f"# Written by `opmix init` for {comment(' '.join(map(str, places)))}. Next:",
        f"#   opmix validate {comment(settings.file)}    checks it without training anything",
        f"#   opmix search {comment(settings.file)}      finds the mixture",
        "# Paths are relative to this file. Every key: docs/search.md.",
        "",
        *_model(settings),
        "",
        f"# Token counts are estimates ({how}).",
        "# A missing valid or test set is split off train, 5 % of the documents each.",
        "domains:",
    ]
    for each in drafts:
        lines += _left_out(each) if each.problem else _domain(each, base, relative=relative)
    budget = (
        "as asked"
        if settings.given
        else "as many as the domains hold; set it to the length of your next stretch of training"
    )
    lines += [
        "",
        *_targets(targets, base, relative=relative),
        "# Token shares the model was last trained on; domains not in it are new to it. Left out: all alike.",
        f"# old_mixture: {{{', '.join(f'{scalar(d.name)}: ...' for d in drafts[:2] if not d.problem)}}}",
        "",
        "budget:",
        f"  tokens: {settings.tokens}  # {budget}",
        f"sequence_length: {settings.length}  # that of your full run; the smallest held-out set needs "
        f"{HELD_OUT_SEQUENCES} of them",
        "",
        *_objective(drafts),
        "# transformers.TrainingArguments of your full run; probes use the same.",
        "trainer:",
        "  learning_rate: 1.0e-4  # put the rate of your full run here",
        f"  per_device_train_batch_size: {settings.batch}",
        "",
        "probes:",
        f"  steps: {settings.steps}  # longer is better up to where a probe repeats its domain",
        "",
        "# What the mixture must obey, if anything:",
        "# solve:",
        "#   floors: {DOMAIN: 0.05}      # at least 5 % of the tokens",
        "#   max_epochs: 4               # repeat no domain more often",
        "#   loss_limits: {DOMAIN: 2}    # its loss may rise by 2 % at most",
    ]
    return "\n".join(lines) + "\n"


def _targets(targets: Sequence[TargetDraft], base: Path, *, relative: bool) -> list[str]:
    if not targets:
        return [
            "# What the mixture is for, if not the domains themselves: text, chats or questions, never trained on.",
            "# targets: {manual: dev/manual.jsonl}",
            "",
        ]
    lines = [
        "# What the mixture is for, never trained on: valid chooses it, test (split off where missing) judges.",
        "targets:",
    ]
    for each in targets:
        lines.append(f"  {scalar(each.name)}:" + (f"  # {_KINDS[each.kind]}" if each.kind in _KINDS else ""))
        for split, source in each.sources.items():
            lines += _source(split, source, base, relative=relative)
    return [*lines, ""]


_KINDS = {"chat": "the answers, given their prompts", "choice": "the right option of each question"}


def scalar(text: str) -> str:
    """A string as one line of YAML, quoted where it must be."""
    return yaml.safe_dump(text, width=2**20, allow_unicode=True).removesuffix("\n...\n").removesuffix("\n")


def comment(text: str) -> str:
    """Text that cannot end a comment early."""
    return " ".join("".join(c if c.isprintable() else "?" for c in text).split())


def count(number: float) -> str:
    """A rough number for people.

    Examples:
        >>> count(1_234_567), count(45_600), count(99)
        ('1.2 M', '46 k', '99')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g} {unit}" if number < 99.5 * size else f"{number / size:.0f} {unit}"
    return f"{number:.0f}"


def _objective(drafts: Sequence[DomainDraft]) -> list[str]:
    if all(each.kind == "text" for each in drafts if not each.problem):
        return []
    return ["objective: sft  # of conversations only the answers are learned, of texts everything", ""]


def _model(settings: Settings) -> list[str]:
    if settings.has_model:
        return [f"model: {scalar(settings.model)}"]
    return [
        "# REPLACE THIS: a checkpoint folder, a .gguf file or a hub name of a causal language model.",
        "# `opmix search` cannot start before that; `opmix init --model NAME --force` also counts tokens with its "
        "tokenizer.",
        f"model: {scalar(settings.model)}",
    ]


def _domain(each: DomainDraft, base: Path, *, relative: bool) -> list[str]:
    size = each.sizes.get("train")
    about = f"about {count(size.tokens)} tokens" if size else "size unknown"
    if size and size.documents:
        about = f"{'' if size.exact else 'about '}{count(size.documents)} documents, {about}"
    origin = f", from {comment(each.label)!r}" if each.label != each.name else ""
    lines = [f"  # {comment(note)}" for note in each.notes]
    lines.append(f"  {scalar(each.name)}:  # {about}{origin}")
    for split in SPLITS:
        if split in each.sources:
            lines += _source(split, each.sources[split], base, relative=relative)
    if each.kind == "chat":
        lines.append(
            "    kind: chat  # learned are the answers; the model needs a chat template, or model.chat_template names "
            "one"
        )
    if each.holdout != DomainDraft.holdout:
        lines.append(
            f"    holdout: {each.holdout:g}  # few documents: a smaller share would leave a held-out set empty"
        )
    return lines


def _source(split: str, source: Source, base: Path, *, relative: bool) -> list[str]:
    hub = source.format == "hub"
    paths = [hub_address(source)] if hub else [_path(path, base, relative=relative) for path in source.paths]
    usual = {"field": "text", "max_tokens": None} if hub else {"format": None, "field": "text", "split": None}
    options = {key: getattr(source, key) for key, value in usual.items() if getattr(source, key) != value}
    listed = [f"{scalar(path)}" for path in paths]
    if not options and len(paths) == 1:
        return [f"    {split}: {listed[0]}"]
    deep = " " * (8 if options else 6)
    lines = [f"    {split}:"]
    if options:
        lines.append(f"      paths: {listed[0]}" if len(paths) == 1 else "      paths:")
    if len(paths) > 1:
        lines += [f"{deep}- {path}" for path in listed]
    return lines + [
        f"      {key}: {scalar(value) if isinstance(value, str) else value}" for key, value in options.items()
    ]


def _path(pattern: str, base: Path, *, relative: bool) -> str:
    full = os.path.abspath(pattern)  # noqa: PTH100 (a pattern, not a path: nothing to resolve)
    shown = os.path.relpath(full, base) if relative else full
    return full if shown.startswith("~") else shown


def _left_out(each: DomainDraft) -> list[str]:
    return [f"  # left out: {comment(each.label)}", f"  #   {comment(each.problem)}"]
