"""Budgets against the tokens there are, before anything is trained. Imports no torch."""

from __future__ import annotations

import math

from opmix.errors import ConfigError
from opmix.lifecycle.config import LifecycleConfig
from opmix.lifecycle.stages import resolve
from opmix.lifecycle.steps import DataFacts, epochs_allowed


def check_budgets(life: LifecycleConfig, data: DataFacts) -> None:
    """Every stage's budget fits what its domains allow, with what earlier stages must at least have used.

    Raises:
        ConfigError: All stages at once that ask for more than there can be.
    """
    problems, used = [], 0
    for stage in resolve(life):
        limits = epochs_allowed(stage)
        wanted = stage.steps * stage.rows_per_step
        if set(limits) >= set(stage.domains):
            rows = {d: math.floor(limits[d] * data.rows[d]) for d in stage.domains}
            # Earlier stages can only have drawn on domains of this one by what the others could not give.
            spent = (
                0
                if stage.config.replay == "repeat"
                else math.ceil(max(0.0, used - _elsewhere(life, data, stage.index, stage.domains)))
            )
            left = sum(rows.values()) - spent
            if wanted > left:
                length = life.sequence_length
                problems.append(
                    f"stages.{stage.index}.tokens: {stage.tokens:,}; its domains allow {max(left, 0) * length:,} at their max_epochs "
                    f"({', '.join(f'{d} {rows[d] * length:,}' for d in stage.domains)}"
                    + (f", less at least {spent * length:,} used before" if spent else "")
                    + "); lower the budget, raise max_epochs or add domains"
                )
        used += wanted
    if problems:
        raise ConfigError(problems)


def _elsewhere(life: LifecycleConfig, data: DataFacts, index: int, domains: tuple[str, ...]) -> float:
    """Most rows that stages before `index` can have drawn from domains not in `domains`."""
    total = 0.0
    others: dict[str, float] = {}
    for stage in resolve(life)[:index]:
        limits = epochs_allowed(stage)
        for name in stage.domains:
            if name not in domains:
                others[name] = limits[name] * data.rows[name] if name in limits else math.inf
    total += sum(others.values())
    return total
