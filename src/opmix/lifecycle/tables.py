"""What a life came to, as entries of `life.json` and as CSV tables. Nothing in them depends on a clock. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opmix.compute.cost import SEARCH_PURPOSES, Cost
from opmix.lifecycle.records import Losses, SegmentOutcome, StageOutcome
from opmix.lifecycle.stages import Stage
from opmix.results.life import (
    DecidedSegment,
    LifeFile,
    LossEntry,
    ScoreEntry,
    SegmentEntry,
    StageCost,
    StageEntry,
    TargetLosses,
)
from opmix.runs.files import write_text


def stage_entry(stage: Stage, home: str, outcome: StageOutcome) -> StageEntry:
    """One stage of one seed, as `life.json` keeps it; `home` is the life's folder in the run folder."""
    before, after, old = outcome.before, outcome.after.losses, outcome.old
    known = (
        [d for d in stage.seen if d not in stage.new] if stage.index else [d for d, s in (old or {}).items() if s > 0]
    )
    parts = [_segment(segment) for segment in outcome.segments]
    records = [record for s in outcome.segments for record in (s.training, s.decision) if record is not None]
    spent = Cost.sum(record.amounts for record in records)
    training, search = spent.flops.get("training", 0.0), spent.total("flops", SEARCH_PURPOSES)
    return StageEntry(
        name=stage.config.name,
        phase=stage.config.phase,
        folder=f"{home}/{stage.label}",
        domains=stage.domains,
        new=stage.new,
        objective=stage.objective,
        tokens=stage.tokens,
        steps=stage.steps,
        old_mixture=None if old is None else dict(old),
        mixture=parts[-1].mixture,
        parts=parts,
        losses={split: _losses(stage.seen, before[split], after[split]) for split in ("valid", "test")},
        targets=_target_losses(stage, before, after) if stage.life.targets else None,
        forgetting={
            d: after["test"][d]["loss"] - before["test"][d]["loss"]
            for d in known
            if d in before["test"] and d in after["test"]
        },
        scores={
            d: ScoreEntry(before=outcome.scores_before.get(d), after=score) for d, score in outcome.after.scores.items()
        },
        tasks=outcome.after.tasks,
        cost=StageCost(tokens=spent.tokens, flops=spent.flops, search_share=search / training if training else None),
        notes=outcome.notes,
    )


def _target_losses(stage: Stage, before: Losses, after: Losses) -> TargetLosses:
    """Of the life's targets."""
    valid, test = (_losses(list(stage.life.targets), before[split], after[split]) for split in ("valid", "test"))
    return TargetLosses(aimed_at=list(stage.settings.targets), valid=valid, test=test)


def _losses(
    names: Sequence[str], before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> dict[str, LossEntry]:
    return {
        d: LossEntry(before=before.get(d, {}).get("loss"), after=after[d]["loss"], error=after[d]["error"])
        for d in names
    }


def _segment(outcome: SegmentOutcome) -> SegmentEntry:
    segment, decision = outcome.segment, outcome.decision
    made: dict[str, Any] = {
        "steps": (segment.start, segment.stop),
        "tokens": outcome.training.supervised_tokens,
        "decided": segment.decided,
        "mixture": dict(outcome.mixture),
        "training_loss": outcome.training.loss,
    }
    if decision is None:
        return SegmentEntry(**made)
    kept = ("interval", "action", "reason", "optimum", "predicted", "baseline", "probes", "notes")
    return DecidedSegment(
        **made,
        **{name: getattr(decision, name) for name in kept},
        search_tokens=decision.amounts.total("tokens"),
        search_flops=decision.amounts.total("flops"),
    )


def write_tables(folder: Path, life: LifeFile) -> None:
    """`tables/stages.csv` (a row per seed, stage and domain) and `tables/costs.csv` (per seed, stage and purpose); targets' own."""
    rows, costs = [], []
    for seed, number, stage in _numbered(life):
        decided = stage.last_decision
        for domain, test in stage.losses["test"].items():
            valid = stage.losses["valid"][domain]
            low, high = ("", "") if decided is None else decided.interval.get(domain, ("", ""))
            told = "" if decided is None else decided.predicted.get(domain, "")
            forgotten = stage.forgetting.get(domain, "")
            measured = [valid.before, valid.after, test.before, test.after, test.error]
            share = stage.mixture.get(domain, 0.0)
            rows.append([seed, number, stage.name, domain, share, low, high, told, *measured, forgotten])
        for purpose, tokens in stage.cost.tokens.items():
            costs.append([seed, number, stage.name, purpose, tokens, stage.cost.flops[purpose]])
    header = [
        "seed",
        "stage",
        "name",
        "domain",
        "share",
        "share_low",
        "share_high",
        "predicted_valid",
        "valid_before",
        "valid_after",
        "test_before",
        "test_after",
        "test_error",
        "forgetting",
    ]
    write_text(folder / "tables" / "stages.csv", csv_text(header, rows))
    if aims := _target_rows(life):
        head = ["seed", "stage", "name", "target", *header[7:-1]]
        write_text(folder / "tables" / "targets.csv", csv_text(head, aims))
    write_text(
        folder / "tables" / "costs.csv", csv_text(["seed", "stage", "name", "purpose", "tokens", "flops"], costs)
    )


def _target_rows(life: LifeFile) -> list[list[Any]]:
    """`tables/targets.csv`: a row per seed, stage and target."""
    rows: list[list[Any]] = []
    for seed, number, stage in _numbered(life):
        decided, losses = stage.last_decision, stage.targets
        if losses is None:
            continue
        for target, test in losses.test.items():
            valid = losses.valid[target]
            told = "" if decided is None else decided.predicted.get(target, "")
            measured = [valid.before, valid.after, test.before, test.after, test.error]
            rows.append([seed, number, stage.name, target, told, *measured])
    return rows


def _numbered(life: LifeFile) -> Iterator[tuple[str, int, StageEntry]]:
    """Seed, number from 1, and entry of every stage."""
    for seed, lived in life.seeds.items():
        yield from ((seed, number, stage) for number, stage in enumerate(lived.stages, 1))


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV, the header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()
