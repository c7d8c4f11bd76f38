"""What a lifecycle's stages come to: who is on offer when, how many steps, and where the mixture is decided. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from opmix.compute.budget import sequences_per_step, world_size
from opmix.compute.schedule import with_schedule
from opmix.config import SearchConfig
from opmix.errors import ConfigError
from opmix.mixing.mixture import Mixture
from opmix.strict import nearest

if TYPE_CHECKING:
    from opmix.lifecycle.config import LifecycleConfig, StageConfig


@dataclass(frozen=True)
class Segment:
    """Steps `start` to `stop` of a stage, on one mixture; `decided`: by a search at `start`."""

    number: int
    start: int
    stop: int
    decided: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a life, resolved."""

    index: int
    life: LifecycleConfig
    config: StageConfig
    domains: tuple[str, ...]
    """On offer."""
    before: tuple[str, ...]
    """On offer in the stage before (or what the starting model was last trained on)."""
    seen: tuple[str, ...]
    """On offer in any stage up to this one: what forgetting is measured on."""
    new: tuple[str, ...]
    """On offer for the first time."""
    worth: Mapping[str, float] | None = None
    """Mean supervised tokens of a training row by domain; None: not known yet, taken as whole sequences of text."""
    objective: str = "causal_lm"

    @property
    def label(self) -> str:
        """Of its folder and step records."""
        return f"{self.index + 1:02d}-{self.config.name}"

    @property
    def weighed(self) -> tuple[str, ...] | None:
        """Domains weighed against the old mixture as a whole: what is added, and what was not on offer before; None: all domains."""
        if not self.before:
            return None
        return _unique([*self.config.add, *(d for d in self.domains if d not in self.before)]) or None

    @cached_property
    def trainer(self) -> dict[str, Any]:
        """Trainer arguments, schedule included."""
        chosen = self.config.schedule or self.life.schedule
        return with_schedule(
            self.life.trainer_of(self.config), self.steps, None if chosen is None else chosen.model_dump()
        )

    @property
    def rows_per_step(self) -> int:
        """Sequences of one optimizer step."""
        return sequences_per_step(self.life.trainer_of(self.config), world_size())

    @property
    def step_tokens(self) -> float:
        """Supervised tokens of one optimizer step; see `opmix.training.matched.supervised_per_step`."""
        worth = self.life.sequence_length if self.worth is None else fmean(self.worth.values())
        return self.rows_per_step * worth

    @cached_property
    def steps(self) -> int:
        """Optimizer steps; fixed before any mixture is known."""
        return max(1, round(self.config.tokens / self.step_tokens))

    @property
    def tokens(self) -> int:
        """Supervised tokens of whole steps."""
        return self.tokens_of(self.steps)

    def tokens_of(self, steps: int) -> int:
        """Supervised tokens of some steps."""
        return round(steps * self.step_tokens)

    @property
    def searched(self) -> bool:
        """Whether a search decides."""
        return self.config.mixture == "search"

    @property
    def prefix_steps(self) -> int:
        """Steps before the first decision."""
        share = self.config.prefix if self.config.prefix is not None else (0.2 if self.from_scratch else 0.0)
        return round(share * self.steps)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Stretches between decisions, in order."""
        if not self.searched:
            return (Segment(0, 0, self.steps, decided=False),)
        first = self.prefix_steps
        every = (
            self.steps if self.config.remix_every is None else max(1, round(self.config.remix_every / self.step_tokens))
        )
        cuts = [*range(first, self.steps, every), self.steps]
        starts = ([0] if first else []) + cuts[:-1]
        stops = ([first] if first else []) + cuts[1:]
        return tuple(
            Segment(i, start, stop, decided=not (first and i == 0))
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
        )

    @property
    def from_scratch(self) -> bool:
        """Whether the model has learned nothing before."""
        return self.index == 0 and self.life.architecture is not None

    def search(self, old: Mixture | None, tokens: int, seed: int) -> SearchConfig:
        """The configuration of one decision for the next `tokens`."""
        domains = {n: self.life.domains[n] for n in self.domains}
        return self.life.search(self.config, domains, self.weighed, old, tokens, seed, self.objective)


class StageFacts(Protocol):
    """What the data say of a stage."""

    @property
    def worth(self) -> Mapping[str, float]:
        """Mean supervised tokens of a training row by domain."""

    @property
    def objective(self) -> str:
        """That fits what the domains hold."""


def resolve(life: LifecycleConfig, facts: Sequence[StageFacts] = ()) -> tuple[Stage, ...]:
    """All stages of a checked lifecycle; with `facts`, one a stage, as the data make them."""
    stages: list[Stage] = []
    before: tuple[str, ...] = tuple(life.old_mixture or ())
    seen = before
    for index, config in enumerate(life.stages):
        offered = config.domains if config.domains is not None else _unique([*before, *config.add])
        domains = tuple(d for d in _unique([*offered, *config.add]) if d not in config.drop)
        new = tuple(d for d in domains if d not in seen)
        seen = _unique([*seen, *domains])
        known = facts[index] if facts else None
        stages.append(
            Stage(
                index=index, life=life, config=config, domains=domains, before=before, seen=seen, new=new,
                worth=None if known is None else known.worth,
                objective=config.objective or ("causal_lm" if known is None else known.objective),
            )
        )  # fmt: skip
        before = domains
    return tuple(stages)


def stage_problems(life: LifecycleConfig) -> Iterator[str]:
    """What is wrong with the stages, one sentence each with its dotted path."""
    named = [stage.name for stage in life.stages]
    known = list(life.domains)
    for name in life.old_mixture or ():
        if name not in known:
            yield f"old_mixture.{name}: unknown domain{nearest(name, known)}"
    for i, config in enumerate(life.stages):
        if config.name in named[:i]:
            yield f"stages.{i}.name: {config.name!r} is taken by stage {named.index(config.name)}; give each its own"
        fixed = list(config.mixture) if isinstance(config.mixture, dict) else []
        prefix = list(config.prefix_mixture) if isinstance(config.prefix_mixture, dict) else []
        for key, names in (
            ("domains", config.domains or ()), ("add", config.add), ("drop", config.drop), ("mixture", fixed), ("prefix_mixture", prefix),
        ):  # fmt: skip
            for name in names:
                if name not in known:
                    yield f"stages.{i}.{key}.{name}: unknown domain{nearest(name, known)}"
    if not any(d not in known for c in life.stages for d in (*(c.domains or ()), *c.add, *c.drop)):
        for stage in resolve(life):
            yield from _problems_of(stage)


def _problems_of(stage: Stage) -> Iterator[str]:
    config, where = stage.config, f"stages.{stage.index}"
    if not stage.domains:
        yield f"{where}.domains: none on offer; name at least one in domains or add"
        return
    for name in config.drop:
        if name not in (*(config.domains or ()), *stage.before):
            yield f"{where}.drop.{name}: is not on offer; expected one of {list(stage.before)}"
    for key, shares in (("mixture", config.mixture), ("prefix_mixture", config.prefix_mixture)):
        if isinstance(shares, dict):
            yield from _mixture_problems(f"{where}.{key}", shares, stage.domains)
    if config.mixture == "current" and not set(stage.before) & set(stage.domains):
        yield f"{where}.mixture: 'current' needs an old mixture; expected search, uniform, size or shares"
    if config.optimizer == "continued" and stage.index == 0:
        yield f"{where}.optimizer: 'continued' needs a stage before; use fresh"
    if not stage.searched:
        for key in ("prefix", "remix_every"):
            if getattr(config, key) is not None:
                yield f"{where}.{key}: has no meaning with a fixed mixture; remove it, or use mixture: search"
        return
    if len(stage.domains) < 2:
        yield f"{where}.domains: {list(stage.domains)}; a search needs at least two (or give a fixed mixture)"
        return
    if config.prefix and not 0 < stage.prefix_steps < stage.steps:
        yield f"{where}.prefix: {config.prefix}; of {stage.steps} steps that leaves none before or after it"
    kept = [d for d in stage.before if d in stage.domains]
    try:
        stage.search(Mixture.uniform(kept) if kept else None, max(stage.tokens, 1), 0)
    except ConfigError as error:
        yield from (f"{where}.{problem}" for problem in error.problems)


def _mixture_problems(where: str, shares: dict[str, float], domains: Sequence[str]) -> Iterator[str]:
    try:
        Mixture.of(shares).on(domains)
    except ConfigError as error:
        yield f"{where}: {error}"


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
