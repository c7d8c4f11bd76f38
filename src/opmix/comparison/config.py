"""`compare.yaml`: a lifecycle and the methods that are to live it. Imports no torch.

Stages with a fixed mixture that come before the first `mixture: search` are shared by all; from there on every method goes its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from opmix.errors import ConfigError
from opmix.lifecycle.config import Named, StageConfig
from opmix.lifecycle.loading import LifecycleConfig, checked_trainers
from opmix.methods.registry import METHODS, Entry, entry_of
from opmix.settings import Given, PartOf, changed, inline, keys_of, overlaid, settings
from opmix.settings.loading import nearest, under, validated
from opmix.settings.reading import read_yaml
from opmix.training.arguments import typed_arguments

_NOT_THEIRS = ("name", "domains", "add", "drop", "tokens", "mixture")
"""What makes a stage the same for all methods."""


@settings
class ContenderConfig:
    """One method of a comparison; keys other than these are the method's own settings."""

    method: str = ""
    """Of the catalogue; empty: the entrant's name."""
    stage: Annotated[Given, PartOf(StageConfig)] = field(default_factory=Given)
    """Settings of the contested stages that differ for this entrant: `probes`, `proxies`, `solve`, `objective`, `sdft`, ..."""
    settings: Given = field(default_factory=Given)

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """Nothing stands for no settings; keys that are not the class's for the method's own."""
        if value is None or not isinstance(value, Mapping):
            return {} if value is None else value
        known = {k: v for k, v in value.items() if k in keys_of(cls)}
        own = {k: v for k, v in value.items() if k not in known}
        given = known.get("settings", {})
        return {**known, "settings": {**given, **own}} if own and isinstance(given, Mapping) else known


@settings
class CompareConfig:
    """A life, and who lives it."""

    life: LifecycleConfig = inline()
    methods: Annotated[dict[Named, ContenderConfig], Field(min_length=1)]
    reference: str | None = None
    """Entrant that the others' differences are taken to; None: the first."""

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A list of names stands for methods as they are."""
        names = value.get("methods") if isinstance(value, Mapping) else None
        if isinstance(names, list | tuple):
            if not all(isinstance(name, str) for name in names):
                raise ConfigError(
                    f"methods: {names}; expected names of methods, or a mapping of them to their settings"
                )
            return {**value, "methods": {name: {} for name in names}}
        return value

    def __post_init__(self) -> None:
        problems = [*self._method_problems(), *self._stage_problems()]
        if self.reference is not None and self.reference not in self.methods:
            problems.append(f"reference: unknown entrant{nearest(self.reference, list(self.methods))}")
        if problems:
            raise ConfigError(problems)
        for name in self.methods:
            self.life_of(name)

    @property
    def first(self) -> str:
        """The entrant that the others are compared with."""
        return self.reference or next(iter(self.methods))

    @property
    def contested(self) -> int:
        """Index of the first stage that methods decide; those before it are shared."""
        return next(i for i, stage in enumerate(self.life.stages) if stage.mixture == "search")

    def entry(self, name: str) -> Entry:
        """The catalogue's row of an entrant."""
        return entry_of(self.methods[name].method or name)

    def method(self, name: str) -> Any:
        """An entrant's method with its settings."""
        return self.entry(name).make(self.methods[name].settings)

    def life_of(self, name: str) -> LifecycleConfig:
        """The life as one entrant lives it.

        Raises:
            ConfigError: What is wrong with its stage settings.
        """
        given, stages = self.life.stages, []
        changes = {**self.entry(name).stage, **self.methods[name].stage}
        if restarts := self.entry(name).training == "restarted":
            changes["optimizer"] = "fresh"
        for index, stage in enumerate(given):
            own = overlaid(stage, changes) if stage.mixture == "search" else stage
            longer = restarts and own is not stage
            stages.append(changed(own, tokens=sum(s.tokens for s in given[: index + 1])) if longer else own)
        try:
            return changed(self.life, stages=tuple(stages))
        except ConfigError as error:
            raise ConfigError([f"methods.{name}.stage: {problem}" for problem in error.problems]) from error

    def learns_otherwise(self, name: str) -> bool:
        """Whether an entrant learns from other rows than the file's own stages say: self-distillation, for one."""
        own = [(s.objective, s.sdft) for s in self.life_of(name).stages]
        return own != [(s.objective, s.sdft) for s in self.life.stages]

    def _method_problems(self) -> Iterator[str]:
        for name, entrant in self.methods.items():
            method = entrant.method or name
            if method not in METHODS:
                near = nearest(method, list(METHODS))
                yield f"methods.{name}: {method!r} is no method{near}; `opmix methods` lists them"
                continue
            if METHODS[method].own_search and entrant.settings:
                given = ", ".join(entrant.settings)
                where = f"methods.{name}.{given}"
                yield f"{where}: no such setting; what a search does is set by `stage: {{probes: ..., proxies: ...}}`"
                continue
            try:
                self.method(name)
            except ConfigError as error:
                yield from (f"methods.{problem}" for problem in error.problems)
                continue
            if self.life.targets and METHODS[method].untargeted:
                yield (
                    f"methods.{name}: {METHODS[method].title} cannot be told of targets: "
                    f"{METHODS[method].untargeted}; remove it, or the targets"
                )
            for key in entrant.stage:
                if key in _NOT_THEIRS:
                    yield f"methods.{name}.stage.{key}: is the same for all methods; remove it"

    def _stage_problems(self) -> Iterator[str]:
        if all(stage.mixture != "search" for stage in self.life.stages):
            yield "stages: none has `mixture: search`, so there is nothing to decide; expected at least one"
            return
        for index, stage in enumerate(self.life.stages):
            if stage.mixture != "search":
                continue
            if index == 0 and self.life.architecture is not None:
                yield (
                    "stages.0.mixture: 'search' on a model that has learned nothing; put a stage with a fixed mixture "
                    "before it (the "
                    "prefix that all methods share), with `optimizer: continued` in the stage after it"
                )
            for key in ("prefix", "remix_every"):
                if getattr(stage, key):
                    yield f"stages.{index}.{key}: methods are compared on one decision a stage; remove it"


def checked_comparison(config: CompareConfig) -> CompareConfig:
    """The comparison with all trainer arguments converted to their types, and tried as every entrant has them.

    Raises:
        ConfigError: Unknown names, values that cannot be, and what transformers refuses.
    """
    methods = {}
    for name, entrant in config.methods.items():
        told = Given(entrant.stage)
        if "trainer" in told:
            told["trainer"] = typed_arguments(told["trainer"], f"methods.{name}.stage.trainer")
        methods[name] = changed(entrant, stage=told)
    checked = changed(config, life=checked_trainers(config.life), methods=methods)
    for name in methods:
        if "trainer" in checked.methods[name].stage:
            try:
                checked_trainers(checked.life_of(name))
            except ConfigError as error:
                raise ConfigError([under(f"methods.{name}", problem) for problem in error.problems]) from error
    return checked


def load_compare(path: Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Read and check a comparison; `a.b=c` overrides reach in by dotted path.

    Raises:
        ConfigError: All problems at once, each with its dotted path.
    """
    content = read_yaml(path, list(overrides), expected="domains, stages and methods", verb="compare")
    return validated(CompareConfig, content, where=str(path))
