"""`compare.json` and `spent.json` of `opmix compare`: every method's lives, and their means side by side.

Losses are of the test split, in nats per token. Nothing in `compare.json` depends on a clock; what differs from run to run is in
`spent.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from opmix.results.files import SCHEMA, as_written, read_document, read_object, typed
from opmix.results.life import Amount, LossEntry, ScoreEntry, Spread, StageCost, StageEntry
from opmix.runs.files import plain, write_json

NAME, SPENT = "compare.json", "spent.json"
_COMMAND = "`opmix compare`"


@dataclass(frozen=True, kw_only=True)
class ComparedStage:
    """What is kept of a stage that methods are compared in."""

    name: str
    folder: str
    tokens: Amount
    mixture: Mapping[str, float]
    losses: Mapping[str, Mapping[str, LossEntry]]
    """Split, domain."""
    forgetting: Mapping[str, float]
    scores: Mapping[str, ScoreEntry]
    cost: StageCost

    @classmethod
    def of(cls, stage: StageEntry) -> Self:
        """Return what is kept of a life's stage."""
        kept = ("name", "folder", "tokens", "mixture", "losses", "forgetting", "scores", "cost")
        return cls(**{name: getattr(stage, name) for name in kept})


@dataclass(frozen=True, kw_only=True)
class CostParts:
    """Tokens or FLOPs of one life."""

    shared: Amount
    """Of the stages that all methods have in common."""
    search: Amount
    training: Amount

    @property
    def total(self) -> Amount:
        """All of them."""
        return self.shared + self.search + self.training


@dataclass(frozen=True, kw_only=True)
class LifeCost:
    """What one life took."""

    tokens: CostParts
    flops: CostParts


@dataclass(frozen=True, kw_only=True)
class ComparedLife:
    """One method's life from one seed; by domain where there are several values."""

    stages: Sequence[ComparedStage]
    losses: Mapping[str, float]
    """At the end."""
    errors: Mapping[str, float | None]
    targets: Mapping[str, float] | None = None
    """Losses at the end, where there are targets."""
    mean_loss: float
    """What the life is judged by."""
    mean_loss_by_stage: Sequence[float]
    forgetting: Mapping[str, float]
    scores: Mapping[str, float]
    """Shares of right answers."""
    cost: LifeCost


@dataclass(frozen=True, kw_only=True)
class ContenderEntry:
    """A method and its lives, by seed."""

    method: str
    title: str
    family: str
    line: str
    paper: str
    settings: Mapping[str, Any]
    stage: Mapping[str, Any]
    """Settings of stages that it has of its own."""
    seeds: Mapping[str, ComparedLife]


@dataclass(frozen=True, kw_only=True)
class ContenderRow:
    """One method over its seeds."""

    entrant: str
    seeds: int
    mean_loss: Spread
    perplexity: Spread
    forgetting: Spread
    worst_forgetting: Spread
    search_flops: Spread
    training_flops: Spread
    total_flops: Spread
    tokens: Spread
    difference: Spread | None = None
    """To the reference, paired by seed; None of the reference itself."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one life took of machine: differs from run to run."""

    seconds: Mapping[str, float]
    """Of `search` and `training`."""
    bytes_written: Amount
    """That searches have left on disk."""


@dataclass(frozen=True, kw_only=True)
class CompareFile:
    """All of `compare.json`, and what `spent.json` holds beside it."""

    schema: int = SCHEMA
    kind: str = "compare"
    units: str = "nats per token"
    split: str = "test"
    judged_by: Sequence[str] | None = None
    """Targets of the last stage, where a comparison has any."""
    reference: str
    contested: Sequence[str]
    """Stages that methods are compared in."""
    shared: Sequence[str]
    """Stages before them."""
    entrants: Mapping[str, ContenderEntry]
    table: Sequence[ContenderRow]
    """Best first."""
    spent: Mapping[str, Mapping[str, Spent]] = field(default_factory=dict)
    """By method and seed; empty: not kept."""

    def lives(self, name: str) -> list[ComparedLife]:
        """A method's lives, one a seed."""
        return list(self.entrants[name].seeds.values())

    def json(self) -> dict[str, Any]:
        """Return what `compare.json` holds: the same inputs give the same bytes."""
        return {key: value for key, value in plain(as_written(self)).items() if key != "spent"}

    def write(self, folder: Path) -> None:
        """Write `compare.json` and `spent.json`."""
        write_json(folder / NAME, self.json())
        write_json(folder / SPENT, as_written(self.spent))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the folder's files.

        Raises:
            StoreError: One is damaged, or `compare.json` is missing or of another schema.
        """
        path, spent = folder / NAME, folder / SPENT
        content = read_document(path, _COMMAND, needed=("table", "entrants"))
        found = typed(cls, {k: v for k, v in content.items() if k != "spent"}, path, nulls=True)
        if not spent.is_file():
            return found
        return replace(found, spent=typed(dict[str, dict[str, Spent]], read_object(spent, _COMMAND), spent))
