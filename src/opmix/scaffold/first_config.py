"""`opmix init`: a commented `search.yaml` for a folder of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from opmix.config import SearchConfig, parse_config
from opmix.domain import PLACEHOLDER, user_path
from opmix.errors import ConfigError, ModelError
from opmix.progress import Progress, Silent
from opmix.runs.files import write_text
from opmix.scaffold.domains import DomainDraft, draft
from opmix.scaffold.layout import domain_names
from opmix.scaffold.places import check_places, find_all
from opmix.scaffold.render import HELD_OUT_SEQUENCES, PROBE_EPOCHS, Settings, render
from opmix.scaffold.targets import FOLDER, find_targets

_LONGEST, _SHORTEST = 1024, 16
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class FirstConfig:
    """A configuration that was written, and what was seen on the way."""

    path: Path
    config: SearchConfig
    domains: tuple[DomainDraft, ...]
    """Those in the configuration."""
    left_out: tuple[DomainDraft, ...]
    notes: tuple[str, ...]

    @property
    def has_model(self) -> bool:
        """Whether a model was named."""
        return self.config.model.name != PLACEHOLDER


def first_config(
    places: str | Path | Sequence[str | Path],
    out: Path,
    *,
    model: str | None = None,
    tokens: int | None = None,
    targets: Sequence[Path] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> FirstConfig:
    """Look at data and write a configuration for it that `opmix search` runs as it is.

    Args:
        places: A folder of text in files (see `opmix.scaffold.layout.find_domains` for the layouts), or several folders, files and datasets
            of the hub, each a domain (see `opmix.scaffold.places.find_all`).
        out: The YAML file.
        model: Checkpoint folder, `.gguf` file or hub name; None: a placeholder, and sizes are guessed from bytes.
        tokens: Training tokens of the stretch; None: as many as the folder holds.
        targets: Files or folders that the mixture is for, beside those in a sub-folder `targets` of a folder.
        force: Replace an existing file.
        progress: Told which domain is looked at.

    Raises:
        ConfigError: The file exists, or fewer than two domains can be used.
        DataError: No such folder or dataset, or no data in it.
        StoreError: The file cannot be written.
    """
    given = [places] if isinstance(places, str | Path) else list(places)
    check_places(given)
    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already; expected a new file; give --force to replace it, or another --out")
    found = [each for each in find_all(given) if each.label != FOLDER]
    tokenizer, limit, notes = _model_facts(model)
    names = domain_names(each.label for each in found)
    drafts = []
    with (progress or Silent()).task("looking at domains", len(found)) as advance:
        for number, each in enumerate(found, 1):
            drafts.append(draft(each, names[each.label], tokenizer))
            advance(number, len(found))
    usable = [each for each in drafts if not each.problem]
    if len(usable) < 2:
        raise ConfigError(_too_few(" ".join(map(str, given)), usable, drafts))
    settings = _settings(usable, out.name, _beside(model, out.parent), limit, tokens, counted=tokenizer is not None)
    aims = find_targets(given, targets, [each.name for each in usable])
    text = render(drafts, settings, places=given, base=out.parent.resolve(), targets=aims)
    config = parse_config(yaml.safe_load(text), where=str(out))
    write_text(out, text)
    return FirstConfig(
        path=out,
        config=config,
        domains=tuple(usable),
        left_out=tuple(each for each in drafts if each.problem),
        notes=tuple(notes),
    )


def _model_facts(model: str | None) -> tuple[Any, int | None, list[str]]:
    """Tokenizer, longest sequence, and what could not be found out."""
    if model is None:
        return None, None, []
    from opmix.models.files import load_model_config
    from opmix.models.load import load_tokenizer

    notes, tokenizer, limit = [], None, None
    try:
        tokenizer = load_tokenizer(model)
        limit = getattr(load_model_config(model).get_text_config(), "max_position_embeddings", None)
    except ModelError as error:
        notes.append(f"{error}. Token counts are guessed from bytes until it can be loaded.")
    return tokenizer, limit, notes


def _settings(
    usable: list[DomainDraft], file: str, model: str | None, limit: int | None, tokens: int | None, *, counted: bool
) -> Settings:
    """Numbers that this much text allows."""
    smallest = min(each.held_out_tokens() for each in usable)
    # A conversation longer than a sequence is dropped: leave room for twice the mean and some for the template.
    chats = [each.sizes["train"] for each in usable if each.kind == "chat"]
    shortest = max([_SHORTEST, *(2 * size.row_tokens // max(size.documents, 1) + _SHORTEST for size in chats)])
    length = _LONGEST
    while length > (limit or _LONGEST) or (length // 2 >= shortest and length * HELD_OUT_SEQUENCES > smallest):
        length //= 2
    # A probe should not read its own domain much more than once.
    worth = fmean(size.tokens / max(size.row_tokens, 1) for size in (each.sizes["train"] for each in usable))
    smallest_train = min(each.train_tokens * (1 - each.holdout * (3 - len(each.sources))) for each in usable)
    most = 0.9 + 0.1 / len(usable)  # of a probe's tokens from its own domain
    once = PROBE_EPOCHS / most * smallest_train / (_BATCH * length * worth)
    steps = min(200, max(10, int(once) // 10 * 10))
    total = sum(each.train_tokens for each in usable)
    return Settings(
        file=file,
        model=model or PLACEHOLDER,
        has_model=model is not None,
        tokens=tokens or max(total, 1),
        total=total,
        given=tokens is not None,
        length=length,
        steps=steps,
        batch=_BATCH,
        counted=counted,
    )


def _beside(model: str | None, base: Path) -> str | None:
    """A local model as the configuration, which may lie elsewhere, has to name it."""
    if model is None or not user_path(model).exists():
        return model
    path = user_path(model)
    return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), base.resolve())


def _too_few(folder: str, usable: list[DomainDraft], drafts: list[DomainDraft]) -> list[str]:
    reasons = [f"{each.label}: left out: {each.problem}" for each in drafts if each.problem]
    if not usable:
        return [f"{folder}: none of its {len(drafts)} domain(s) can be used; expected at least two", *reasons]
    remedy = (
        "add a sub-folder or file for each further domain, or let `opmix discover` divide this text into domains"
        if not reasons
        else "mend what was left out"
    )
    return [f"{folder}: one usable domain ({usable[0].label}); expected at least two; {remedy}", *reasons]
