"""A run folder (`mixture.json`, `manifest.json`) and what the user adds to it, into a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opmix.domain import Source, is_url
from opmix.errors import ConfigError, StoreError
from opmix.exporters.plan import NEGLIGIBLE, DomainPlan, MixturePlan, Unit
from opmix.mixing.mixture import Mixture
from opmix.results.files import typed
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.settings.checker import checker

HUB = "hub:"
"""Prefix of a path that is a Hugging Face dataset's name."""
_EPOCH_SLACK = 1 + 1e-3


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a run folder does not say, or what is to be different."""

    tokens: int | None = None
    """Budget; None: the run's."""
    unit: Unit | None = None
    """What one sample of the user's data is, for trainers that take more than one."""
    sequence_length: int | None = None
    """Tokens; None: the run's."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Domain to where its data are in the trainer's own format; key "" is a template with `{domain}`.

    `hub:ORG/NAME` is a Hugging Face dataset."""
    row_tokens: Mapping[str, float] = field(default_factory=dict)
    """Domain to mean tokens per document; key "" is for all others."""
    available: Mapping[str, int] = field(default_factory=dict)
    """Domain to tokens that there are; key "" is for all others."""
    base: Path | None = None
    """Folder that the relative paths of the run's configuration start from; None: they stay as they are."""


@dataclass(frozen=True, kw_only=True)
class _DomainEntry:
    train: dict[str, Any]
    valid: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    max_epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Solve:
    max_epochs: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Config:
    domains: dict[str, _DomainEntry] = field(default_factory=dict)
    sequence_length: int | None = None
    solve: _Solve = field(default_factory=_Solve)
    seed: int = 0


def read_plan(run: Path, options: ExportOptions | None = None) -> MixturePlan:
    """What there is to export.

    Args:
        run: A folder written by `opmix search` or `opmix fit`, or one stage's search of `opmix run`.
        options: What the folder does not say.

    Raises:
        StoreError: No such folder, or its files are damaged.
        ConfigError: Options that name no domain, or a budget that repeats a domain more often than the run allows.
    """
    options = options or ExportOptions()
    found, manifest = MixtureFile.read(run), Manifest.find(run)
    config, rows = _Config(), {} if manifest is None else manifest.rows
    if manifest is not None and manifest.config is not None:
        config = typed(_Config, manifest.config, run / "manifest.json", inside="config")
    _known_names(options, found.mixture, run)
    kept = {name: share for name, share in found.mixture.items() if share >= NEGLIGIBLE}
    if not kept:
        raise StoreError(f"{run / 'mixture.json'}: no positive share in the mixture; run the command again")
    shares = Mixture.normalised(kept)
    budget = options.tokens if options.tokens is not None else (None if found.cost is None else found.cost.stage_tokens)
    plan = MixturePlan(
        origin=run.as_posix(),
        kind=found.kind,
        domains=tuple(
            replace(
                _domain(n, shares[n], found.domains.get(n, {}), config.domains.get(n), options),
                rows=rows.get(n, "text"),
            )
            for n in kept
        ),
        dropped=tuple(name for name in found.mixture if name not in kept),
        budget=budget,
        sequence_length=options.sequence_length or config.sequence_length,
        unit=options.unit,
        seed=config.seed,
    )
    _within_limits(plan, config)
    return plan


def _known_names(options: ExportOptions, mixture: Mapping[str, float], run: Path) -> None:
    given: dict[str, Mapping[str, Any]] = {
        "--path": options.paths,
        "--row-tokens": options.row_tokens,
        "--available": options.available,
    }
    problems = [
        f"{option}: unknown domain {name!r}; {run} has {', '.join(mixture)}"
        for option, values in given.items()
        for name in values
        if name and name not in mixture
    ]
    if problems:
        raise ConfigError(problems)


def _domain(
    name: str, share: float, counts: Mapping[str, Mapping[str, int]], entry: _DomainEntry | None, options: ExportOptions
) -> DomainPlan:
    # Held-out documents without files of their own lie among the training documents: a trainer reads them as well.
    carved = [split for split in ("valid", "test") if entry is not None and getattr(entry, split) is None]
    inside = [counts[split] for split in ("train", *carved) if split in counts]
    tokens, counted = sum(c["tokens"] for c in inside), all("documents" in c for c in inside)
    documents = sum(c["documents"] for c in inside) if counted else 0  # of what is read in place nobody knows
    train = counts.get("train")
    path = options.paths.get(name) or options.paths.get("", "").replace("{domain}", name) or None
    return DomainPlan(
        name=name,
        share=share,
        source=_source(entry, path, options.base),
        path=path,
        tokens=options.available.get(name) or options.available.get("") or tokens or None,
        row_tokens=options.row_tokens.get(name)
        or options.row_tokens.get("")
        or (tokens / documents if documents else None),
        held_out=1 - train["documents"] / documents if train is not None and documents else 0.0,
    )


def _source(entry: _DomainEntry | None, path: str | None, base: Path | None) -> Source | None:
    source = checker(Source).validate_python(entry.train) if entry is not None else None
    if path is not None:
        field_name = source.field if source is not None else "text"
        if path.startswith(HUB):
            return Source(paths=(path.removeprefix(HUB),), field=field_name, format="hub")
        return Source(paths=(path,), field=field_name)
    if source is None or source.format == "hub" or base is None:
        return source
    return Source(
        paths=tuple(p if is_url(p) else (base / Path(p).expanduser()).as_posix() for p in source.paths),
        format=source.format,
        field=source.field,
        split=source.split,
        config_name=source.config_name,
        dtype=source.dtype,
    )


def _within_limits(plan: MixturePlan, config: _Config) -> None:
    problems = []
    for name, seen in plan.known_epochs().items():
        entry = config.domains.get(name)
        limit = (entry.max_epochs if entry is not None else None) or config.solve.max_epochs
        if limit is not None and seen > limit * _EPOCH_SLACK:
            problems.append(
                f"domain {name!r}: {plan.budget:,} tokens repeat it {seen:.3g} times and the run allows {limit:g}; "
                "search again for this budget, or give smaller --tokens"
            )
    if problems:
        raise ConfigError(problems)
