"""What a comparison came to: `compare.json` and its tables. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from opmix.comparison.config import CompareConfig
from opmix.comparison.steps import home_of
from opmix.compute.cost import SEARCH_PURPOSES
from opmix.lifecycle.tables import csv_text
from opmix.results.comparison import (
    ComparedLife,
    ComparedStage,
    CompareFile,
    ContenderEntry,
    ContenderRow,
    CostParts,
    LifeCost,
    Spent,
)
from opmix.results.life import Amount, Spread, StageEntry
from opmix.runs.files import write_text
from opmix.runs.store import RunStore
from opmix.target import objective_weights

Lives = Mapping[str, Mapping[int, Sequence[StageEntry]]]
"""Entrant, seed: its stages, the shared ones first."""


def compare_file(config: CompareConfig, lives: Lives, store: RunStore) -> CompareFile:
    """What `compare.json` and `spent.json` hold."""
    entrants = {}
    for name, by_seed in lives.items():
        entry = config.entry(name)
        entrants[name] = ContenderEntry(
            method=entry.name,
            title=entry.title,
            family=entry.family,
            line=entry.line,
            paper=entry.paper,
            settings={**entry.settings, **config.methods[name].settings},
            stage=dict(config.methods[name].stage),
            seeds={str(seed): _life(config, stages) for seed, stages in by_seed.items()},
        )
    names = [stage.name for stage in config.life.stages]
    return CompareFile(
        judged_by=list(config.life.targets_of(config.life.stages[-1])) if config.life.targets else None,
        reference=config.first,
        contested=names[config.contested :],
        shared=names[: config.contested],
        entrants=entrants,
        table=sorted((_row(config.first, name, entrants) for name in entrants), key=_place),
        spent={
            name: {str(seed): _spent(store, config, home_of(seed, name)) for seed in by_seed}
            for name, by_seed in lives.items()
        },
    )


def _life(config: CompareConfig, stages: Sequence[StageEntry]) -> ComparedLife:
    """One entrant's life from one seed."""
    last, first = stages[-1], config.contested
    judged = [_judged(config, index, stage) for index, stage in enumerate(stages)]
    return ComparedLife(
        stages=[ComparedStage.of(stage) for stage in stages[first:]],
        losses={d: x.after for d, x in last.losses["test"].items()},
        errors={d: x.error for d, x in last.losses["test"].items()},
        targets=None if last.targets is None else {t: x.after for t, x in last.targets.test.items()},
        mean_loss=judged[-1],
        mean_loss_by_stage=judged[first:],
        forgetting=forgetting(stages),
        scores={d: s.after["share"] for d, s in last.scores.items() if s.after},
        cost=LifeCost(
            tokens=_parts([s.cost.tokens for s in stages], first), flops=_parts([s.cost.flops for s in stages], first)
        ),
    )


def _parts(spent: Sequence[Mapping[str, Amount]], first: int) -> CostParts:
    """By stage and purpose, of which those before `first` are shared."""
    return CostParts(
        shared=sum(sum(amounts.values()) for amounts in spent[:first]),
        search=sum(amounts.get(p, 0.0) for amounts in spent[first:] for p in SEARCH_PURPOSES),
        training=sum(amounts.get("training", 0.0) for amounts in spent[first:]),
    )


def _judged(config: CompareConfig, index: int, stage: StageEntry) -> float:
    """The mean test loss that a stage is judged by: of its targets as they are weighed where it has any, else of the domains."""
    losses = {d: x.after for d, x in stage.losses["test"].items()}
    told = config.life.stages[index]
    targets = config.life.targets_of(told)
    if not targets or stage.targets is None:
        return fmean(losses.values())
    losses |= {t: x.after for t, x in stage.targets.test.items()}
    solve = config.life.settings_of(told, tuple(stage.domains)).solve
    weights = objective_weights(targets, solve.weights, list(losses))
    return float(weights @ list(losses.values()) / weights.sum())


def forgetting(stages: Sequence[StageEntry]) -> dict[str, float]:
    """By domain: test loss at the end of the life less that after the stage that first had it.

    What a checkpoint had learned before the life counts from the life's start; empty where nothing was known before the last stage.
    """
    first = stages[0]
    known = [d for d, share in (first.old_mixture or {}).items() if share > 0]
    learned: dict[str, float | None] = {d: first.losses["test"][d].before for d in known}
    for stage in stages[:-1]:
        for domain, loss in stage.losses["test"].items():
            if domain not in learned:
                learned[domain] = loss.after
    return {d: stages[-1].losses["test"][d].after - loss for d, loss in learned.items() if loss is not None}


def _spent(store: RunStore, config: CompareConfig, home: str) -> Spent:
    seconds, written = {"search": 0.0, "training": 0.0}, 0
    for index, stage in enumerate(config.life.stages[config.contested :], config.contested + 1):
        label = f"{index:02d}-{stage.name}"
        for file in sorted((store.folder / "steps" / home / label).glob("*.json")):
            record = store.record(f"{home}/{label}/{file.stem}")
            spent = {} if record is None else record["result"].get("amounts", {}).get("seconds", {})
            for purpose, amount in spent.items():
                if purpose != "measuring":
                    seconds["training" if purpose == "training" else "search"] += amount
        for folder in (store.folder / home / label).glob("search-*"):
            written += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Spent(seconds=seconds, bytes_written=written)


def _row(reference: str, name: str, entrants: Mapping[str, ContenderEntry]) -> ContenderRow:
    """One entrant over its seeds: means, deviations, and differences to the reference, paired by seed."""
    lives = entrants[name].seeds
    others = entrants[reference].seeds if reference in entrants else {}
    paired = [seed for seed in lives if seed in others] if name != reference else []
    each = list(lives.values())
    return ContenderRow(
        entrant=name,
        seeds=len(lives),
        mean_loss=Spread.of([life.mean_loss for life in each]),
        perplexity=Spread.of([math.exp(life.mean_loss) for life in each]),
        forgetting=Spread.of([fmean(life.forgetting.values() or [math.nan]) for life in each]),
        worst_forgetting=Spread.of([max(life.forgetting.values(), default=math.nan) for life in each]),
        search_flops=Spread.of([life.cost.flops.search for life in each]),
        training_flops=Spread.of([life.cost.flops.training for life in each]),
        total_flops=Spread.of([life.cost.flops.total for life in each]),
        tokens=Spread.of([life.cost.tokens.training for life in each]),
        difference=Spread.of([lives[s].mean_loss - others[s].mean_loss for s in paired]) if paired else None,
    )


def _place(row: ContenderRow) -> tuple[bool, float, float]:
    """Best first: by the paired difference, which entrants with some seeds missing are also right by; last what is not finite."""
    difference, loss = 0.0 if row.difference is None else row.difference.known, row.mean_loss.known
    return math.isnan(difference) or math.isnan(loss), difference, loss


def write_tables(folder: Path, made: CompareFile) -> None:
    """`tables/compare.csv` (a row an entrant) and `tables/domains.csv` (per entrant, seed and domain)."""
    amounts = ("forgetting", "worst_forgetting", "search_flops", "training_flops", "total_flops")
    rows = []
    for row in made.table:
        told = ("", "") if row.difference is None else (row.difference.mean, row.difference.sd)
        means = [getattr(row, name).mean for name in amounts]
        rows.append([row.entrant, row.seeds, row.mean_loss.mean, row.mean_loss.sd, *told, *means])
    header = ["entrant", "seeds", "mean_loss", "sd", "difference", "difference_sd", *amounts]
    write_text(folder / "tables" / "compare.csv", csv_text(header, rows))
    domains = [
        [
            name,
            seed,
            domain,
            loss,
            life.errors[domain],
            life.stages[-1].mixture.get(domain, 0.0),
            life.forgetting.get(domain, ""),
        ]
        for name, entrant in made.entrants.items()
        for seed, life in entrant.seeds.items()
        for domain, loss in life.losses.items()
    ]
    columns = ["entrant", "seed", "domain", "test_loss", "test_error", "share", "forgetting"]
    write_text(folder / "tables" / "domains.csv", csv_text(columns, domains))
