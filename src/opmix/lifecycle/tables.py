"""What a life came to, as one JSON document and CSV tables. Nothing in them depends on a clock. Imports no torch."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opmix.compute.cost import SEARCH_PURPOSES, Cost
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.records import Losses, SegmentOutcome, StageOutcome
from opmix.lifecycle.stages import Stage
from opmix.runs.files import plain, write_text


def stage_json(stage: Stage, home: str, outcome: StageOutcome) -> dict[str, Any]:
    """One stage of one seed, as `life.json` keeps it; `home` is the life's folder in the run folder."""
    before, after, old = outcome.before, outcome.after.losses, outcome.old
    known = (
        [d for d in stage.seen if d not in stage.new] if stage.index else [d for d, s in (old or {}).items() if s > 0]
    )
    segments = [_segment(segment) for segment in outcome.segments]
    records = [record for s in outcome.segments for record in (s.training, s.decision) if record is not None]
    spent = Cost.sum(record.amounts for record in records)
    training, search = spent.flops.get("training", 0.0), spent.total("flops", SEARCH_PURPOSES)
    return plain(
        {
            "name": stage.config.name,
            "phase": stage.config.phase,
            "folder": f"{home}/{stage.label}",
            "domains": stage.domains,
            "new": stage.new,
            "objective": stage.objective,
            "tokens": stage.tokens,
            "steps": stage.steps,
            "old_mixture": None if old is None else dict(old),
            "mixture": segments[-1]["mixture"],
            "parts": segments,
            "losses": {split: _losses(stage.seen, before[split], after[split]) for split in ("valid", "test")},
            **({"targets": _target_losses(stage, before, after)} if stage.life.targets else {}),
            "forgetting": {
                d: after["test"][d]["loss"] - before["test"][d]["loss"]
                for d in known
                if d in before["test"] and d in after["test"]
            },
            "scores": {
                d: {"before": outcome.scores_before.get(d), "after": score} for d, score in outcome.after.scores.items()
            },
            "tasks": outcome.after.tasks,
            "cost": {
                "tokens": spent.tokens,
                "flops": spent.flops,
                "search_share": search / training if training else None,
            },
            "notes": outcome.notes,
        }
    )


def _target_losses(stage: Stage, before: Losses, after: Losses) -> dict[str, Any]:
    """Of the life's targets; `aimed_at`: those that this stage's mixture is for."""
    names = list(stage.life.targets)
    losses = {split: _losses(names, before[split], after[split]) for split in ("valid", "test")}
    return {"aimed_at": list(stage.settings.targets), **losses}


def _losses(
    names: Sequence[str], before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    return {
        d: {"before": before.get(d, {}).get("loss"), "after": after[d]["loss"], "error": after[d]["error"]}
        for d in names
    }


def _segment(outcome: SegmentOutcome) -> dict[str, Any]:
    segment, decision = outcome.segment, outcome.decision
    made: dict[str, Any] = {
        "steps": [segment.start, segment.stop],
        "tokens": outcome.training.supervised_tokens,
        "decided": segment.decided,
        "mixture": dict(outcome.mixture),
        "training_loss": outcome.training.loss,
    }
    if decision is not None:
        kept = ("interval", "action", "reason", "optimum", "predicted", "baseline", "probes", "notes")
        made |= {name: getattr(decision, name) for name in kept}
        made["search_tokens"] = decision.amounts.total("tokens")
        made["search_flops"] = decision.amounts.total("flops")
    return made


def life_json(life: LifecycleConfig, lives: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The content of `life.json`."""
    seeds = {
        str(seed): {"stages": list(stages), "model": f"{stages[-1]['folder']}/model"} for seed, stages in lives.items()
    }
    return plain(
        {
            "schema": 1,
            "kind": "run",
            "units": "nats per token",
            "seeds": seeds,
            "stages": [_over_seeds([stages[i] for stages in lives.values()]) for i in range(len(life.stages))],
        }
    )


def _over_seeds(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and n of what differs between seeds."""
    first = stages[0]
    after = [{d: x["after"] for d, x in s["losses"]["test"].items()} for s in stages]
    return {
        "name": first["name"],
        "n": len(stages),
        "mixture": _spread([s["mixture"] for s in stages]),
        "test_loss": _spread(after),
        "mean_test_loss": spread([statistics.fmean(x.values()) for x in after]),
        **_over_targets(stages),
        "forgetting": _spread([s["forgetting"] for s in stages]),
        "search_share": spread(
            [s["cost"]["search_share"] for s in stages if s["cost"]["search_share"] is not None] or [math.nan]
        ),
    }


def _over_targets(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Test losses of targets, where there are any."""
    if "targets" not in stages[0]:
        return {}
    after = [{t: x["after"] for t, x in s["targets"]["test"].items()} for s in stages]
    return {"target_test_loss": _spread(after)}


def _spread(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: spread([v[name] for v in values if name in v]) for name in values[0]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (NaN for one value) and n."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "sd": deviation, "n": len(values)}


def write_tables(folder: Path, content: Mapping[str, Any]) -> None:
    """`tables/stages.csv` (a row per seed, stage and domain) and `tables/costs.csv` (per seed, stage and purpose); targets' own."""
    rows, costs = [], []
    for seed, life in content["seeds"].items():
        for number, stage in enumerate(life["stages"], 1):
            decided: Mapping[str, Any] = next((p for p in reversed(stage["parts"]) if p["decided"]), {})
            for domain, test in stage["losses"]["test"].items():
                valid = stage["losses"]["valid"][domain]
                low, high = decided.get("interval", {}).get(domain, ("", ""))
                rows.append(
                    [
                        seed,
                        number,
                        stage["name"],
                        domain,
                        stage["mixture"].get(domain, 0.0),
                        low,
                        high,
                        decided.get("predicted", {}).get(domain, ""),
                        valid["before"],
                        valid["after"],
                        test["before"],
                        test["after"],
                        test["error"],
                        stage["forgetting"].get(domain, ""),
                    ]
                )
            for purpose, tokens in stage["cost"]["tokens"].items():
                costs.append([seed, number, stage["name"], purpose, tokens, stage["cost"]["flops"][purpose]])
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
    if aims := _target_rows(content):
        head = ["seed", "stage", "name", "target", *header[7:-1]]
        write_text(folder / "tables" / "targets.csv", csv_text(head, aims))
    write_text(
        folder / "tables" / "costs.csv", csv_text(["seed", "stage", "name", "purpose", "tokens", "flops"], costs)
    )


def _target_rows(content: Mapping[str, Any]) -> list[list[Any]]:
    """`tables/targets.csv`: a row per seed, stage and target."""
    rows: list[list[Any]] = []
    for seed, life in content["seeds"].items():
        for number, stage in enumerate(life["stages"], 1):
            losses = stage.get("targets", {})
            decided: Mapping[str, Any] = next((p for p in reversed(stage["parts"]) if p["decided"]), {})
            for target, test in losses.get("test", {}).items():
                valid = losses["valid"][target]
                told = decided.get("predicted", {}).get(target, "")
                measured = [valid["before"], valid["after"], test["before"], test["after"], test["error"]]
                rows.append([seed, number, stage["name"], target, told, *measured])
    return rows


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV, the header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()
