"""Runs as experiment trackers keep them, and the swarm of those that have shares and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opmix.errors import DataError
from opmix.mixing.columns import Columns, is_counter
from opmix.mixing.swarm import Directions, Swarm, joined


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One run's numbers; what is not a number is left out."""

    name: str
    settings: Mapping[str, float]
    """Configuration, parameters or hyperparameters."""
    metrics: Mapping[str, float]
    """The last value of each."""
    finished: bool = True
    """False where the tracker says that it is not, or failed."""

    def setting(self, key: str) -> float | None:
        """A configured number, else a logged one."""
        return self.settings.get(key, self.metrics.get(key))

    def metric(self, key: str) -> float | None:
        """A logged number, else a configured one."""
        return self.metrics.get(key, self.settings.get(key))

    @property
    def keys(self) -> set[str]:
        """All names."""
        return {*self.settings, *self.metrics}


def numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers in nested mappings, under names joined by `/`; text that is a number counts, truth values do not.

    Examples:
        >>> numbers({"ratio": {"web": {"value": 0.5}}, "lr": "1e-3", "name": "x", "fp16": True})
        {'ratio/web': 0.5, 'lr': 0.001}
    """
    found: dict[str, float] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            # W&B wraps what is configured as {"desc": ..., "value": ...}.
            wrapped = "value" in value and set(value) <= {"value", "desc"}
            found |= numbers({key: value["value"]}, prefix) if wrapped else numbers(value, f"{name}/")
        elif (number := as_number(value)) is not None:
            found[name] = number
    return found


def as_number(value: object) -> float | None:
    """The value as a number, NaN and infinity included; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def swarm_of(
    runs: Sequence[TrackedRun], where: Path, *, ratio_prefix: str, metric_prefix: str, directions: Directions
) -> Swarm:
    """The runs that have shares and losses, as a table to fit.

    Args:
        runs: Whatever the tracker had.
        where: For messages.
        ratio_prefix: Of the shares' names; the rest of a name is the domain. A domain that a run lacks has share 0.
        metric_prefix: Of the losses' names. Where some end in `loss`, only those are taken.
        directions: Which are taken instead, and which way is better.

    Raises:
        DataError: No run has shares, or none has losses as well; shares that do not add up to one; see `Directions.of`.
    """
    notes: list[str] = []
    unfinished = [run.name for run in runs if not run.finished]
    mixed = [run for run in runs if run.finished and any(key.startswith(ratio_prefix) for key in run.keys)]
    domains = sorted({key for run in mixed for key in run.keys if key.startswith(ratio_prefix)})
    if not domains:
        have = sorted({key for run in runs for key in run.keys})
        raise DataError(
            f"{where}: none of {len(runs)} runs has shares named {ratio_prefix}DOMAIN"
            f"{f' ({len(unfinished)} are unfinished)' if unfinished else ''}; "
            f"they have {', '.join(have[:8]) or 'no numbers'}{'...' if len(have) > 8 else ''}; give --ratio-prefix"
        )
    known = {key for run in mixed for key in run.keys} - set(domains)
    named = (*directions.chosen, *directions.maximize, *directions.minimize)
    metrics = _losses(mixed, metric_prefix, ratio_prefix, notes)
    metrics = (
        directions.of([*metrics, *(n for n in named if n in known - set(metrics))], known, where)
        if metrics or named
        else []
    )
    if not metrics:
        raise DataError(
            f"{where}: no run with shares has losses named {metric_prefix}...; it has "
            f"{', '.join(sorted(known)[:8]) or 'no others'}; "
            "give --metric-prefix"
        )
    whole = [run for run in mixed if all(_finite(run.metric(m)) for m in metrics)]
    if not whole:
        raise DataError(f"{where}: no run has all of {', '.join(metrics[:6])} as finite numbers; give --metric-prefix")
    partial = [run.name for run in mixed if run not in whole]
    other = len(runs) - len(unfinished) - len(mixed)
    for names, why in ((unfinished, "not finished"), (partial, "a loss is missing or not finite")):
        if names:
            shown = ", ".join(names[:5]) + ("..." if len(names) > 5 else "")
            notes.append(f"{where.name}: {len(names)} run(s) left out, {why}: {shown}")
    if other:
        notes.append(f"{where.name}: {other} run(s) without {ratio_prefix}DOMAIN left out")
    return _table(whole, where, domains, metrics, ratio_prefix, notes, directions)


def _losses(runs: Sequence[TrackedRun], prefix: str, ratio_prefix: str, notes: list[str]) -> list[str]:
    """Names of losses that at least half of the runs have."""
    names = sorted({k for run in runs for k in run.keys if k.startswith(prefix) and not k.startswith(ratio_prefix)})
    named = [n for n in names if n.endswith("loss")]
    chosen = named or [n for n in names if not is_counter(n)]
    rare = [n for n in chosen if 2 * sum(run.metric(n) is not None for run in runs) < len(runs)]
    chosen = [n for n in chosen if n not in rare]
    left = [n for n in names if n not in chosen]
    if left and chosen:
        shown = ", ".join(left[:5]) + ("..." if len(left) > 5 else "")
        notes.append(f"{len(left)} metric(s) under {prefix!r} not taken for losses, or logged by few runs: {shown}")
    return chosen


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _table(
    runs: Sequence[TrackedRun],
    where: Path,
    domains: Sequence[str],
    metrics: Sequence[str],
    prefix: str,
    notes: Sequence[str],
    directions: Directions,
) -> Swarm:
    ids: list[str] = []
    for run in runs:  # display names need not be unique
        ids.append(run.name if run.name not in ids else f"{run.name} ({len(ids)})")
    values = np.array([[run.setting(d) or 0.0 for d in domains] for run in runs])
    table = Columns(where, tuple(ids), "run", tuple(d.removeprefix(prefix) for d in domains), values)
    losses = np.array([[run.metric(m) for m in metrics] for run in runs], dtype=np.float64)
    return joined(table, table.names, *directions.as_losses(losses, metrics), notes=notes)
