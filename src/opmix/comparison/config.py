"""`compare.yaml`: a lifecycle and the methods that are to live it. Imports no torch.

Stages with a fixed mixture that come before the first `mixture: search` are shared by all; from there on every method goes its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from opmix.errors import ConfigError
from opmix.lifecycle.config import LifecycleConfig, Named, StageConfig
from opmix.methods.catalogue import METHODS, Entry, entry_of
from opmix.strict import Strict, nearest, read_yaml, validated

_NOT_THEIRS = ("name", "domains", "add", "drop", "tokens", "mixture")
"""What makes a stage the same for all methods."""


class EntrantConfig(Strict):
    """One method of a comparison; keys other than these are the method's own settings."""

    method: str = ""
    """Of the catalogue; empty: the entrant's name."""
    stage: dict[str, Any] = Field(default_factory=dict)
    """Settings of the contested stages that differ for this entrant: `probes`, `proxies`, `solve`, `objective`, `sdft`, ..."""
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            return value
        known = {k: v for k, v in value.items() if k in cls.model_fields}
        own = {k: v for k, v in value.items() if k not in cls.model_fields}
        return {**known, "settings": {**known.get("settings", {}), **own}} if own else known


class CompareConfig(LifecycleConfig):
    """A life, and who lives it."""

    methods: dict[Named, EntrantConfig] = Field(min_length=1)
    reference: str | None = None
    """Entrant that the others' differences are taken to; None: the first."""

    @model_validator(mode="before")
    @classmethod
    def _list_of_names(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("methods"), list | tuple):
            return {**value, "methods": {name: {} for name in value["methods"]}}
        return value

    @model_validator(mode="after")
    def _entrants_fit(self) -> CompareConfig:
        problems = [*self._method_problems(), *self._stage_problems()]
        if self.reference is not None and self.reference not in self.methods:
            problems.append(f"reference: unknown entrant{nearest(self.reference, list(self.methods))}")
        if problems:
            raise ConfigError(problems)
        for name in self.methods:
            self.life_of(name)
        return self

    @property
    def first(self) -> str:
        """The entrant that the others are compared with."""
        return self.reference or next(iter(self.methods))

    @property
    def contested(self) -> int:
        """Index of the first stage that methods decide; those before it are shared."""
        return next(i for i, stage in enumerate(self.stages) if stage.mixture == "search")

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
        changes = {**self.entry(name).stage, **self.methods[name].stage}
        content = self.model_dump(exclude={"methods", "reference"})
        restarts = self.entry(name).training == "restarted"
        for index, stage in enumerate(content["stages"]):
            if self.stages[index].mixture == "search":
                stage.update(
                    {k: {**stage[k], **v} if isinstance(stage.get(k), dict) else v for k, v in changes.items()}
                )
                if restarts:
                    stage["tokens"] = sum(s.tokens for s in self.stages[: index + 1])
                    stage["optimizer"] = "fresh"
        try:
            return validated(LifecycleConfig, content)
        except ConfigError as error:
            raise ConfigError([f"methods.{name}.stage: {problem}" for problem in error.problems]) from error

    def learns_otherwise(self, name: str) -> bool:
        """Whether an entrant learns from other rows than the file's own stages say: self-distillation, for one."""
        own = [(s.objective, s.sdft) for s in self.life_of(name).stages]
        return own != [(s.objective, s.sdft) for s in self.stages]

    def _method_problems(self) -> Iterator[str]:
        for name, entrant in self.methods.items():
            method = entrant.method or name
            if method not in METHODS:
                yield f"methods.{name}: {method!r} is no method{nearest(method, list(METHODS))}; `opmix methods` lists them"
                continue
            if METHODS[method].own_search and entrant.settings:
                given = ", ".join(entrant.settings)
                yield f"methods.{name}.{given}: no such setting; what a search does is set by `stage: {{probes: ..., proxies: ...}}`"
                continue
            try:
                self.method(name)
            except ConfigError as error:
                yield from (f"methods.{problem}" for problem in error.problems)
            for key in entrant.stage:
                if key in _NOT_THEIRS:
                    yield f"methods.{name}.stage.{key}: is the same for all methods; remove it"
                elif key not in StageConfig.model_fields:
                    yield f"methods.{name}.stage.{key}: unknown key{nearest(key, list(StageConfig.model_fields))}"

    def _stage_problems(self) -> Iterator[str]:
        if all(stage.mixture != "search" for stage in self.stages):
            yield "stages: none has `mixture: search`, so there is nothing to decide; expected at least one"
            return
        for index, stage in enumerate(self.stages):
            if stage.mixture != "search":
                continue
            if index == 0 and self.architecture is not None:
                yield (
                    "stages.0.mixture: 'search' on a model that has learned nothing; put a stage with a fixed mixture before it (the "
                    "prefix that all methods share), with `optimizer: continued` in the stage after it"
                )
            for key in ("prefix", "remix_every"):
                if getattr(stage, key):
                    yield f"stages.{index}.{key}: methods are compared on one decision a stage; remove it"


def load_compare(path: Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Read and check a comparison; `a.b=c` overrides reach in by dotted path.

    Raises:
        ConfigError: All problems at once, each with its dotted path.
    """
    content = read_yaml(path, list(overrides), expected="domains, stages and methods")
    return validated(CompareConfig, content, where=str(path))
