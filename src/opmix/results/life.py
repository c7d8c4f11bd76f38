"""`life.json` of `opmix run`: every seed's stages, and their means. Nothing in it depends on a clock; losses in nats per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag

from opmix.results.files import SCHEMA, as_written, read_document, typed
from opmix.runs.files import plain, write_json

NAME = "life.json"
_SAME = 1e-6
"""Difference of shares up to which two mixtures are one."""
Amount = int | float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value over seeds."""

    mean: float | None
    """None: it is known of no seed."""
    sd: float | None
    """Sample standard deviation; None of one value."""
    n: int

    @property
    def known(self) -> float:
        """The mean, NaN where it is not known."""
        return math.nan if self.mean is None else self.mean

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return mean, deviation and number of at least one value; NaN: not known."""
        mean, deviation = fmean(values), stdev(values) if len(values) > 1 else math.nan
        return cls(
            mean=mean if math.isfinite(mean) else None,
            sd=deviation if math.isfinite(deviation) else None,
            n=len(values),
        )


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """A held-out loss around a stage."""

    before: float | None
    """None: not measured, or of what was not there yet."""
    after: float
    error: float | None
    """Standard error of `after`."""


@dataclass(frozen=True, kw_only=True)
class TargetLosses:
    """Losses of a life's targets, by name."""

    aimed_at: Sequence[str]
    """Those that the stage's mixture is for."""
    valid: Mapping[str, LossEntry]
    test: Mapping[str, LossEntry]


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """A piece of a stage on one mixture."""

    steps: tuple[int, int]
    """First, and the one after the last."""
    tokens: Amount
    decided: bool
    mixture: Mapping[str, float]
    training_loss: float | None


@dataclass(frozen=True, kw_only=True)
class DecidedSegment(SegmentEntry):
    """A piece whose mixture was searched for."""

    interval: Mapping[str, tuple[float, float]]
    """By domain, of the optimum's share."""
    action: str
    reason: str
    optimum: Mapping[str, float]
    predicted: Mapping[str, float | None]
    """Loss of the mixture by evaluation set."""
    baseline: Mapping[str, float | None]
    """That of the model as it was."""
    probes: int
    notes: Sequence[str]
    search_tokens: Amount
    search_flops: Amount

    def share_interval(self, domain: str) -> tuple[float, float] | None:
        """Return the interval of a share that was trained on; None where it is not the optimum's, which has it."""
        wanted = self.optimum or self.mixture
        if any(abs(share - self.mixture.get(name, 0.0)) > _SAME for name, share in wanted.items()):
            return None
        return self.interval.get(domain)


def _searched(part: Any) -> bool:
    return bool(part.get("decided") if isinstance(part, dict) else getattr(part, "decided", False))


AnySegment = Annotated[
    Annotated[DecidedSegment, Tag(True)] | Annotated[SegmentEntry, Tag(False)], Discriminator(_searched)
]
"""Told apart by `decided`, so that one that is damaged does not pass for the other."""


@dataclass(frozen=True, kw_only=True)
class ScoreEntry:
    """Right answers on a domain's test split around a stage."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage took."""

    tokens: Mapping[str, Amount]
    """By purpose."""
    flops: Mapping[str, Amount]
    search_share: float | None
    """Of the training FLOPs; None: nothing was trained."""


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One stage of one seed."""

    name: str
    phase: str | None
    folder: str
    """In the run folder."""
    domains: Sequence[str]
    new: Sequence[str]
    objective: str
    tokens: Amount
    steps: int
    old_mixture: Mapping[str, float] | None
    """Trained on before; None: from scratch."""
    mixture: Mapping[str, float]
    """Of its last segment."""
    parts: Sequence[AnySegment]
    losses: Mapping[str, Mapping[str, LossEntry]]
    """Split, domain."""
    targets: TargetLosses | None = None
    forgetting: Mapping[str, float]
    """Rise of the test loss of what was known before, by domain."""
    scores: Mapping[str, ScoreEntry]
    tasks: Sequence[Mapping[str, Any]]
    """Of lm-evaluation-harness, after the stage."""
    cost: StageCost
    notes: Sequence[str]

    @property
    def decisions(self) -> list[DecidedSegment]:
        """Its searched segments, in order."""
        return [part for part in self.parts if isinstance(part, DecidedSegment)]

    @property
    def last_decision(self) -> DecidedSegment | None:
        """The search that its last searched segment followed; None: no search."""
        return next(reversed(self.decisions), None)


@dataclass(frozen=True, kw_only=True)
class SeedEntry:
    """One seed's life."""

    stages: Sequence[StageEntry]
    model: str
    """Folder of the last stage's model in the run folder."""

    def json(self) -> dict[str, Any]:
        """Return what the file holds of it."""
        return dict(plain(as_written(self)))


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One stage over seeds; by domain where there are several values."""

    name: str
    n: int
    """Seeds."""
    mixture: Mapping[str, Spread]
    test_loss: Mapping[str, Spread]
    mean_test_loss: Spread
    target_test_loss: Mapping[str, Spread] | None = None
    forgetting: Mapping[str, Spread]
    search_share: Spread

    @classmethod
    def of(cls, stages: Sequence[StageEntry]) -> Self:
        """Return the summary of one stage's entries, one a seed."""
        after = [{d: x.after for d, x in s.losses["test"].items()} for s in stages]
        aims = [{t: x.after for t, x in s.targets.test.items()} for s in stages if s.targets is not None]
        shares = [s.cost.search_share for s in stages if s.cost.search_share is not None]
        return cls(
            name=stages[0].name,
            n=len(stages),
            mixture=_by_name([s.mixture for s in stages]),
            test_loss=_by_name(after),
            mean_test_loss=Spread.of([fmean(x.values()) for x in after]),
            target_test_loss=_by_name(aims) if aims else None,
            forgetting=_by_name([s.forgetting for s in stages]),
            search_share=Spread.of(shares or [math.nan]),
        )


@dataclass(frozen=True, kw_only=True)
class LifeFile:
    """All of `life.json`."""

    schema: int = SCHEMA
    kind: str = "run"
    units: str = "nats per token"
    seeds: Mapping[str, SeedEntry]
    stages: Sequence[StageSummary]

    @classmethod
    def of(cls, lives: Mapping[int, Sequence[StageEntry]]) -> Self:
        """Return the file of lives, by seed."""
        return cls(
            seeds={
                str(seed): SeedEntry(stages=stages, model=f"{stages[-1].folder}/model")
                for seed, stages in lives.items()
            },
            stages=[StageSummary.of(same) for same in zip(*lives.values(), strict=True)],
        )

    @property
    def lives(self) -> list[Sequence[StageEntry]]:
        """The stages of every seed, in the order of the seeds."""
        return [seed.stages for seed in self.seeds.values()]

    def json(self) -> dict[str, Any]:
        """Return what the file holds: the same inputs give the same bytes."""
        return dict(plain(as_written(self)))

    def write(self, folder: Path) -> None:
        """Write `life.json`."""
        write_json(folder / NAME, self.json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the folder's file.

        Raises:
            StoreError: It is missing, damaged, or of another schema.
        """
        path = folder / NAME
        return typed(cls, read_document(path, "`opmix run`", needed=("seeds", "stages")), path, nulls=True)


def _by_name(values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: Spread.of([v[name] for v in values if name in v]) for name in values[0]}
