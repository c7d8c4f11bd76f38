"""Budgets and constraints of every stage against the tokens there are, and probes against the model, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from opmix.compute.budget import asks_for_parts
from opmix.errors import ConfigError, OpMixError
from opmix.lifecycle.available_domains import decision_config, fixed_mixture
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.stages import Stage, resolve
from opmix.lifecycle.steps import DataFacts
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.feasible import check_decision, problem_of
from opmix.probes.settings import ProbeSettings
from opmix.settings.loading import under


def check_life(life: LifecycleConfig, data: DataFacts, model: Callable[[], Any]) -> None:
    """What would stop a later stage after the earlier ones are trained.

    Args:
        life: With its trainer arguments converted.
        data: Rows and their worth, by stage.
        model: Makes the likeness of the life's model without weights; called only where a stage searches, or ranks are to spread it.

    Raises:
        ConfigError: All stages at once, each problem with its dotted path.
        ModelError: There is no such model, or it cannot be spread.
    """
    if asks_for_parts(life.search.trainer):
        from opmix.models.sharded import check_can_be_sharded

        check_can_be_sharded(model())
    problems: list[str] = []
    for check in (check_budgets, check_decisions, partial(check_stage_probes, model=model)):
        try:
            check(life, data)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def check_decisions(life: LifecycleConfig, data: DataFacts) -> None:
    """A flat problem for every stage that searches, over all the tokens its domains have: what it cannot do, it can never.

    Raises:
        ConfigError: All stages at once whose prior, design or constraints contradict themselves.
    """
    problems: list[str] = []
    old, certain = None if life.old_mixture is None else Mixture.of(life.old_mixture), True
    for stage in resolve(life, data.stages):
        rows = data.rows_of(stage)
        kept = {} if old is None else {n: s for n, s in old.items() if n in stage.domains and s > 0}
        old = Mixture.normalised(kept) if kept else None
        try:
            if not stage.searched:
                certain = certain or stage.config.mixture != "current"
                old = fixed_mixture(stage, old, rows)
                continue
            first = next(segment for segment in stage.segments if segment.decided)
            if first.start:  # what the prefix was trained on is the old mixture
                old, certain = fixed_mixture(stage, old, rows), True
            config = decision_config(stage, stage.tokens_in(first), 0, old)
            worth = stage.worth or dict.fromkeys(stage.domains, float(life.search.sequence_length))
            available = {n: round(rows[n] * worth[n]) for n in stage.domains}
            check_decision(config, problem_of(config, available), available, certain=certain)
        except OpMixError as error:
            problems += _said(stage, error)
        old, certain = Mixture.uniform(stage.domains), False
    if problems:
        raise ConfigError(problems)


def check_stage_probes(life: LifecycleConfig, data: DataFacts, model: Callable[[], Any]) -> None:
    """Probes of every stage that searches, put on the likeness of the life's model.

    Raises:
        ConfigError: All stages at once whose probes do not fit it.
        ModelError: There is no such model.
    """
    problems: list[str] = []
    tried: set[ProbeSettings] = set()
    likeness = None
    for stage in resolve(life, data.stages):
        probes = stage.settings.probes
        if not stage.searched or probes in tried:
            continue
        from opmix.probes.kinds import check_probes  # torch and peft, only where something is searched

        tried.add(probes)
        likeness = model() if likeness is None else likeness
        try:
            check_probes(likeness, probes)
        except OpMixError as error:
            problems += _said(stage, error)
    if problems:
        raise ConfigError(problems)


def _said(stage: Stage, error: OpMixError) -> list[str]:
    """What is wrong with a stage's decision, under the stage's own path."""
    found = error.problems if isinstance(error, ConfigError) else (str(error),)
    return [under(f"stages.{stage.index}", problem) for problem in found]


def check_budgets(life: LifecycleConfig, data: DataFacts) -> None:
    """Every stage's budget is a step at least, and fits what its domains allow, with what earlier stages must at least have used.

    Raises:
        ConfigError: All stages at once that ask for less than a step, or more than there can be.
    """
    problems, used = [], 0
    stages = resolve(life, data.stages)
    for stage in stages:
        if stage.config.tokens < stage.step_tokens / 2:  # budgets are rounded to whole steps, and this one to none
            problems.append(
                f"stages.{stage.index}.tokens: {stage.config.tokens:,}; an optimizer step takes about "
                f"{stage.step_tokens:,.0f} ({stage.rows_per_step} rows); expected one step at least; raise it, or "
                "lower the batch of trainer"
            )
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
