"""The steps of a comparison: a shared chain, then one for every entrant. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from opmix.comparison.config import CompareConfig
from opmix.lifecycle.steps import DataFacts, Step, chain

_SEARCH_ONLY = ("probes", "solve", "decision", "huber_delta")
"""What only OP-Mix's own search reads: other methods' results do not become stale by it."""


def home_of(seed: int, entrant: str | None = None) -> str:
    """Folder of a life in the run folder; of the shared part without `entrant`."""
    return f"seed-{seed}" if entrant is None else f"seed-{seed}/{entrant}"


def facts_file(entrant: str) -> str:
    """Where the data of an entrant that learns from other rows than the others are recorded."""
    return f"data-{entrant}.json"


def entrant_chain(config: CompareConfig, name: str, data: DataFacts, seed: int) -> list[Step]:
    """All steps of an entrant, the shared ones (the same for every entrant) among them."""
    entry, entrant = config.entry(name), config.methods[name]
    told = {"name": entry.name, "settings": {**entry.settings, **entrant.settings}}
    renamed: dict[str, Step] = {}
    for step in chain(config.life_of(name), data, seed):
        mine = step.stage is not None and step.stage.index >= config.contested
        settings = dict(step.settings)
        if mine and step.kind in ("search", "train") and step.stage is not None and step.stage.searched:
            settings |= {"method": told}
            if step.kind == "search" and not entry.own_search:
                settings["search"] = _common(settings["search"])
        renamed[step.name] = replace(
            step,
            name=step.name.replace(home_of(seed), home_of(seed, name), 1) if mine else step.name,
            settings=settings,
            after={renamed[before].name: renamed[before].key for before in step.after},
        )
    return list(renamed.values())


def _common(search: Mapping[str, Any]) -> dict[str, Any]:
    """What any method may read of a decision's settings."""
    kept = {k: v for k, v in search.items() if k not in _SEARCH_ONLY}
    if "targets" in search:  # what any method then minimises
        kept["solve"] = {k: search["solve"][k] for k in ("objective", "weights", "unit") if k in search["solve"]}
    return {**kept, "proxies": {k: search["proxies"][k] for k in ("eval_sequences", "batch_tokens")}}
