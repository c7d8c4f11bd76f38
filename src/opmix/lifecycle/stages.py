"""What a lifecycle's stages come to: who is on offer when, how many steps, and where the mixture is decided. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Protocol

from opmix.compute.budget import sequences_per_step
from opmix.compute.schedule import with_schedule
from opmix.config import SearchSettings
from opmix.lifecycle.config import LifeSettings, StageConfig
from opmix.settings import as_json
from opmix.training.settings import ObjectiveName


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
    life: LifeSettings
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
    objective: ObjectiveName = "causal_lm"

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
    def settings(self) -> SearchSettings:
        """What the stage's decisions and trainings are told."""
        return self.life.settings_of(self.config, self.domains)

    @property
    def schedule(self) -> dict[str, Any] | None:
        """The learning rate's, where one is given."""
        chosen = self.config.schedule or self.life.schedule
        return None if chosen is None else as_json(chosen)

    @cached_property
    def trainer(self) -> dict[str, Any]:
        """Trainer arguments, schedule included."""
        return with_schedule(self.settings.trainer, self.steps, self.schedule)

    @cached_property
    def epochs_allowed(self) -> dict[str, float]:
        """Limits of repetition by domain, where there are any."""
        limits = {n: self.life.domains[n].max_epochs or self.settings.solve.max_epochs for n in self.domains}
        return {name: float(limit) for name, limit in limits.items() if limit is not None}

    @property
    def rows_per_step(self) -> int:
        """Sequences of one optimizer step."""
        return sequences_per_step(self.settings.trainer)

    @property
    def step_tokens(self) -> float:
        """Supervised tokens of one optimizer step; see `opmix.training.plan.supervised_per_step`."""
        worth = self.life.search.sequence_length if self.worth is None else fmean(self.worth.values())
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

    def tokens_in(self, segment: Segment) -> int:
        """Supervised tokens of a segment."""
        return self.tokens_of(segment.stop - segment.start)

    @property
    def from_scratch(self) -> bool:
        """Whether the model has learned nothing before."""
        return self.index == 0 and self.life.architecture is not None


class StageFacts(Protocol):
    """What the data say of a stage."""

    @property
    def worth(self) -> Mapping[str, float]:
        """Mean supervised tokens of a training row by domain."""

    @property
    def objective(self) -> ObjectiveName:
        """That fits what the domains hold."""


def resolve(life: LifeSettings, facts: Sequence[StageFacts] = ()) -> tuple[Stage, ...]:
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
                index=index,
                life=life,
                config=config,
                domains=domains,
                before=before,
                seen=seen,
                new=new,
                worth=None if known is None else known.worth,
                objective=config.objective or ("causal_lm" if known is None else known.objective),
            )
        )
        before = domains
    return tuple(stages)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
