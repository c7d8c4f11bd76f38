"""What a comparison came to: `compare.json` and its tables. Imports no torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from opmix.compare.config import CompareConfig
from opmix.compare.steps import home_of
from opmix.lifecycle.tables import SEARCH_PURPOSES, spread
from opmix.runs.files import plain, write_json, write_text
from opmix.runs.store import RunStore

Lives = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
"""Entrant, seed: its stages as `opmix.lifecycle.tables.stage_json` keeps them, the shared ones first."""


def compare_json(config: CompareConfig, lives: Lives, store: RunStore) -> dict[str, Any]:
    """The content of `compare.json`; losses are of the test split, in nats per token."""
    entrants = {}
    for name, by_seed in lives.items():
        entry = config.entry(name)
        entrants[name] = {
            "method": entry.name, "title": entry.title, "family": entry.family, "line": entry.line, "paper": entry.paper,
            "settings": {**entry.settings, **config.methods[name].settings}, "stage": dict(config.methods[name].stage),
            "seeds": {str(seed): _life(config, name, seed, stages, store) for seed, stages in by_seed.items()},
        }  # fmt: skip
    return plain(
        {
            "schema": 1, "kind": "compare", "units": "nats per token", "split": "test", "reference": config.first,
            "contested": [s.name for s in config.stages[config.contested :]], "shared": [s.name for s in config.stages[: config.contested]],
            "entrants": entrants, "table": [_row(config.first, name, entrants) for name in entrants],
        }
    )  # fmt: skip


def _life(
    config: CompareConfig, name: str, seed: int, stages: Sequence[Mapping[str, Any]], store: RunStore
) -> dict[str, Any]:
    """One entrant's life from one seed."""
    last, first = stages[-1], config.contested
    losses = {d: x["after"] for d, x in last["losses"]["test"].items()}
    seconds, written = _clock(store, config, name, seed)
    return {
        "stages": [
            {k: s[k] for k in ("name", "folder", "tokens", "mixture", "losses", "forgetting", "scores", "cost")}
            for s in stages[first:]
        ],
        "losses": losses,
        "errors": {d: x["error"] for d, x in last["losses"]["test"].items()},
        "mean_loss": fmean(losses.values()),
        "mean_loss_by_stage": [fmean(x["after"] for x in s["losses"]["test"].values()) for s in stages[first:]],
        "forgetting": forgetting(stages),
        "scores": {d: s["after"]["share"] for d, s in last["scores"].items() if s["after"]},
        "cost": {
            what: {
                "shared": sum(sum(s["cost"][what].values()) for s in stages[:first]),
                "search": sum(s["cost"][what].get(p, 0.0) for s in stages[first:] for p in SEARCH_PURPOSES),
                "training": sum(s["cost"][what].get("training", 0.0) for s in stages[first:]),
            }
            for what in ("tokens", "flops")
        },
        "seconds": seconds,
        "bytes_written": written,
    }  # fmt: skip


def forgetting(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By domain: test loss at the end of the life less that after the stage in which it was last new."""
    learned: dict[str, float] = {}
    for stage in stages[:-1]:
        for domain, loss in stage["losses"]["test"].items():
            if domain not in learned:
                learned[domain] = loss["after"]
    return {d: stages[-1]["losses"]["test"][d]["after"] - loss for d, loss in learned.items()}


def _clock(store: RunStore, config: CompareConfig, name: str, seed: int) -> tuple[dict[str, float], int]:
    """Seconds by kind of work and bytes that searches wrote, from the step records of the entrant's own stages."""
    seconds, written = {"search": 0.0, "training": 0.0}, 0
    for stage in config.stages[config.contested :]:
        index = config.stages.index(stage)
        folder = store.folder / "steps" / home_of(seed, name) / f"{index + 1:02d}-{stage.name}"
        for file in sorted(folder.glob("*.json")):
            record = store.record(str(file.relative_to(store.folder / "steps").with_suffix("")))
            result = {} if record is None else record["result"]
            for purpose, amount in result.get("amounts", {}).get("seconds", {}).items():
                kind = "training" if purpose == "training" else "search"
                if purpose != "measuring":
                    seconds[kind] += amount
            written += int(result.get("bytes", 0))
    return seconds, written


def _row(reference: str, name: str, entrants: Mapping[str, Any]) -> dict[str, Any]:
    """One entrant over its seeds: means, deviations, and differences to the reference, paired by seed."""
    lives = entrants[name]["seeds"]
    row: dict[str, Any] = {
        "entrant": name, "seeds": len(lives),
        "mean_loss": spread([life["mean_loss"] for life in lives.values()]),
        "perplexity": spread([math.exp(life["mean_loss"]) for life in lives.values()]),
        "forgetting": spread([fmean(life["forgetting"].values()) for life in lives.values()]),
        "worst_forgetting": spread([max(life["forgetting"].values()) for life in lives.values()]),
        "search_flops": spread([life["cost"]["flops"]["search"] for life in lives.values()]),
        "training_flops": spread([life["cost"]["flops"]["training"] for life in lives.values()]),
        "total_flops": spread([sum(life["cost"]["flops"].values()) for life in lives.values()]),
        "tokens": spread([life["cost"]["tokens"]["training"] for life in lives.values()]),
        "seconds": spread([sum(life["seconds"].values()) for life in lives.values()]),
        "bytes_written": spread([life["bytes_written"] for life in lives.values()]),
    }  # fmt: skip
    others = entrants.get(reference, {"seeds": {}})["seeds"]
    paired = [seed for seed in lives if seed in others]
    if name != reference and paired:
        row["difference"] = spread([lives[s]["mean_loss"] - others[s]["mean_loss"] for s in paired])
    return row


def write_compare(folder: Path, content: Mapping[str, Any]) -> None:
    """`compare.json`, `tables/compare.csv` (a row an entrant) and `tables/domains.csv` (a row per entrant, seed and domain)."""
    write_json(folder / "compare.json", content)
    header = ["entrant", "seeds", "mean_loss", "sd", "difference", "difference_sd", "forgetting", "worst_forgetting", "search_flops",
              "training_flops", "total_flops", "seconds", "bytes_written"]  # fmt: skip
    rows = []
    for row in content["table"]:
        difference = row.get("difference", {})
        rows.append([
            row["entrant"], row["seeds"], row["mean_loss"]["mean"], row["mean_loss"]["sd"], difference.get("mean", ""),
            difference.get("sd", ""), *(row[k]["mean"] for k in header[6:]),
        ])  # fmt: skip
    write_text(folder / "tables" / "compare.csv", _csv(header, rows))
    domains = [
        [name, seed, domain, loss, life["errors"][domain], life["stages"][-1]["mixture"].get(domain, 0.0),
         life["forgetting"].get(domain, "")]
        for name, entrant in content["entrants"].items()
        for seed, life in entrant["seeds"].items()
        for domain, loss in life["losses"].items()
    ]  # fmt: skip
    columns = ["entrant", "seed", "domain", "test_loss", "test_error", "share", "forgetting"]
    write_text(folder / "tables" / "domains.csv", _csv(columns, domains))


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
