"""Budgets against the tokens there are, before anything is trained. Imports no torch."""

from __future__ import annotations

import math

from opmix.errors import ConfigError
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.stages import Stage, resolve
from opmix.lifecycle.steps import DataFacts


def check_budgets(life: LifecycleConfig, data: DataFacts) -> None:
    """Every stage's budget fits what its domains allow, with what earlier stages must at least have used.

    Raises:
        ConfigError: All stages at once that ask for more than there can be.
    """
    problems, used = [], 0
    stages = resolve(life, data.stages)
    for stage in stages:
        allowed = _allowed(stage, data)
        if all(math.isfinite(tokens) for tokens in allowed.values()):
            # Earlier stages can only have drawn on domains of this one by what the others could not give.
            elsewhere: dict[str, float] = {}
            for earlier in stages[: stage.index]:
                elsewhere |= {d: t for d, t in _allowed(earlier, data).items() if d not in stage.domains}
            spent = 0 if stage.config.replay == "repeat" else max(0.0, used - sum(elsewhere.values()))
            left = math.floor(sum(allowed.values()) - spent)
            if stage.tokens > left:
                problems.append(
                    f"stages.{stage.index}.tokens: {stage.tokens:,}; its domains allow {max(left, 0):,} at their "
                    "max_epochs "
                    f"({', '.join(f'{d} {tokens:,.0f}' for d, tokens in allowed.items())}"
                    + (f", less at least {spent:,.0f} used before" if spent else "")
                    + "); lower the budget, raise max_epochs or add domains"
                )
        used += stage.tokens
    if problems:
        raise ConfigError(problems)


def _allowed(stage: Stage, data: DataFacts) -> dict[str, float]:
    """Supervised tokens that each domain's limit of repetition allows; infinite without a limit."""
    rows, limits = data.rows_of(stage), stage.epochs_allowed
    worth = stage.worth or dict.fromkeys(stage.domains, float(stage.life.search.sequence_length))
    return {d: math.floor(limits[d] * rows[d]) * worth[d] if d in limits else math.inf for d in stage.domains}
