"""What a comparison came to: `compare.json` and its tables. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from opmix.comparison.config import CompareConfig
from opmix.comparison.steps import home_of
from opmix.compute.cost import SEARCH_PURPOSES
from opmix.lifecycle.tables import csv_text
from opmix.results.files import as_written
from opmix.results.life import Spread, StageEntry
from opmix.results.lives import write_comparison
from opmix.runs.files import plain, write_text
from opmix.runs.store import RunStore
from opmix.target import objective_weights

Lives = Mapping[str, Mapping[int, Sequence[StageEntry]]]
"""Entrant, seed: its stages, the shared ones first."""

_KEPT = ("name", "folder", "tokens", "mixture", "losses", "forgetting", "scores", "cost")
"""What a comparison keeps of a stage."""


def compare_json(config: CompareConfig, lives: Lives) -> dict[str, Any]:
    """The content of `compare.json`; losses are of the test split, in nats per token. Nothing in it depends on a clock."""
    entrants = {}
    for name, by_seed in lives.items():
        entry = config.entry(name)
        entrants[name] = {
            "method": entry.name,
            "title": entry.title,
            "family": entry.family,
            "line": entry.line,
            "paper": entry.paper,
            "settings": {**entry.settings, **config.methods[name].settings},
            "stage": dict(config.methods[name].stage),
            "seeds": {str(seed): _life(config, stages) for seed, stages in by_seed.items()},
        }
    names = [stage.name for stage in config.life.stages]
    return plain(
        {
            "schema": 1,
            "kind": "compare",
            "units": "nats per token",
            "split": "test",
            **({"judged_by": list(config.life.targets_of(config.life.stages[-1]))} if config.life.targets else {}),
            "reference": config.first,
            "contested": names[config.contested :],
            "shared": names[: config.contested],
            "entrants": entrants,
            "table": sorted((_row(config.first, name, entrants) for name in entrants), key=_place),
        }
    )


def _life(config: CompareConfig, stages: Sequence[StageEntry]) -> dict[str, Any]:
    """One entrant's life from one seed."""
    last, first = stages[-1], config.contested
    losses = {d: x.after for d, x in last.losses["test"].items()}
    judged = [_judged(config, index, stage) for index, stage in enumerate(stages)]
    return {
        "stages": [as_written({k: getattr(s, k) for k in _KEPT}) for s in stages[first:]],
        "losses": losses,
        "errors": {d: x.error for d, x in last.losses["test"].items()},
        **({} if last.targets is None else {"targets": {t: x.after for t, x in last.targets.test.items()}}),
        "mean_loss": judged[-1],
        "mean_loss_by_stage": judged[first:],
        "forgetting": forgetting(stages),
        "scores": {d: s.after["share"] for d, s in last.scores.items() if s.after},
        "cost": {
            what: {
                "shared": sum(sum(getattr(s.cost, what).values()) for s in stages[:first]),
                "search": sum(getattr(s.cost, what).get(p, 0.0) for s in stages[first:] for p in SEARCH_PURPOSES),
                "training": sum(getattr(s.cost, what).get("training", 0.0) for s in stages[first:]),
            }
            for what in ("tokens", "flops")
        },
    }


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


def spent_json(config: CompareConfig, lives: Lives, store: RunStore) -> dict[str, Any]:
    """The content of `spent.json`: what differs from run to run. By entrant and seed: `seconds` by kind of work, and `bytes_written`.

    Bytes are those that searches have left on disk.
    """
    return {
        name: {str(seed): _spent(store, config, home_of(seed, name)) for seed in by_seed}
        for name, by_seed in lives.items()
    }


def _spent(store: RunStore, config: CompareConfig, home: str) -> dict[str, Any]:
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
    return {"seconds": seconds, "bytes_written": written}


def _row(reference: str, name: str, entrants: Mapping[str, Any]) -> dict[str, Any]:
    """One entrant over its seeds: means, deviations, and differences to the reference, paired by seed."""
    lives = entrants[name]["seeds"]
    row: dict[str, Any] = {
        "entrant": name,
        "seeds": len(lives),
        "mean_loss": _spread([life["mean_loss"] for life in lives.values()]),
        "perplexity": _spread([math.exp(life["mean_loss"]) for life in lives.values()]),
        "forgetting": _spread([fmean(life["forgetting"].values() or [math.nan]) for life in lives.values()]),
        "worst_forgetting": _spread([max(life["forgetting"].values(), default=math.nan) for life in lives.values()]),
        "search_flops": _spread([life["cost"]["flops"]["search"] for life in lives.values()]),
        "training_flops": _spread([life["cost"]["flops"]["training"] for life in lives.values()]),
        "total_flops": _spread([sum(life["cost"]["flops"].values()) for life in lives.values()]),
        "tokens": _spread([life["cost"]["tokens"]["training"] for life in lives.values()]),
    }
    others = entrants.get(reference, {"seeds": {}})["seeds"]
    paired = [seed for seed in lives if seed in others]
    if name != reference and paired:
        row["difference"] = _spread([lives[s]["mean_loss"] - others[s]["mean_loss"] for s in paired])
    return row


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return dict(as_written(Spread.of(values)))


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    """Best first: by the paired difference, which entrants with some seeds missing are also right by."""
    return row.get("difference", {"mean": 0.0})["mean"], row["mean_loss"]["mean"]


def write_compare(folder: Path, content: Mapping[str, Any], spent: Mapping[str, Any]) -> None:
    """`compare.json`, `spent.json`, `tables/compare.csv` (a row an entrant), `tables/domains.csv` (per entrant, seed and domain)."""
    write_comparison(folder, content, spent)
    header = [
        "entrant",
        "seeds",
        "mean_loss",
        "sd",
        "difference",
        "difference_sd",
        "forgetting",
        "worst_forgetting",
        "search_flops",
        "training_flops",
        "total_flops",
    ]
    rows = []
    for row in content["table"]:
        difference = row.get("difference", {})
        rows.append(
            [
                row["entrant"],
                row["seeds"],
                row["mean_loss"]["mean"],
                row["mean_loss"]["sd"],
                difference.get("mean", ""),
                difference.get("sd", ""),
                *(row[k]["mean"] for k in header[6:]),
            ]
        )
    write_text(folder / "tables" / "compare.csv", csv_text(header, rows))
    domains = [
        [
            name,
            seed,
            domain,
            loss,
            life["errors"][domain],
            life["stages"][-1]["mixture"].get(domain, 0.0),
            life["forgetting"].get(domain, ""),
        ]
        for name, entrant in content["entrants"].items()
        for seed, life in entrant["seeds"].items()
        for domain, loss in life["losses"].items()
    ]
    columns = ["entrant", "seed", "domain", "test_loss", "test_error", "share", "forgetting"]
    write_text(folder / "tables" / "domains.csv", csv_text(columns, domains))
