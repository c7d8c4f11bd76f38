"""What is on offer at a decision: domains with tokens left, the old mixture among them, and the search's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from opmix.config import BudgetConfig, ModelConfig, SearchConfig, SearchSettings
from opmix.errors import DataError
from opmix.lifecycle.stages import Stage
from opmix.mixing.mixture import Mixture
from opmix.settings import changed

MODEL = "<model object>"
"""Of a decision whose model is not kept on disk."""


def available(stage: Stage, rows: Mapping[str, int], drawn: Mapping[str, int]) -> tuple[str, ...]:
    """Domains that still have tokens under their limit of repetition.

    Args:
        stage: The stage.
        rows: Training sequences each domain has.
        drawn: Sequences drawn so far.

    Raises:
        DataError: Fewer than two are left to choose from.
    """
    limits = stage.epochs_allowed
    left = tuple(d for d in stage.domains if d not in limits or math.floor(limits[d] * rows[d]) - drawn.get(d, 0) >= 2)
    if len(left) < 2:
        raise DataError(
            f"stage {stage.config.name!r}: {list(left)} left to choose from, the other domains are used up; raise "
            "max_epochs, "
            "use replay: repeat, or give a fixed mixture"
        )
    return left


def old_available(stage: Stage, mixture: Mixture | None) -> Mixture | None:
    """The old mixture on what is still on offer; None where nothing has been learned.

    Raises:
        DataError: All of it was dropped.
    """
    if mixture is None:
        return None
    learned = [n for n, s in mixture.items() if s > 0]
    kept = {n: mixture[n] for n in learned if n in stage.domains}
    if not kept:
        raise DataError(
            f"stage {stage.config.name!r}: none of the old mixture's domains {learned} is on offer; keep at least one "
            "to replay, "
            "or give a fixed mixture"
        )
    return Mixture.normalised(kept)


def rejected(stage: Stage, old: Mixture | None) -> tuple[str, ...]:
    """Domains that an earlier decision gave nothing and that this stage does not add again: they are not weighed.

    So a stage costs what it adds, however much was turned down before.
    """
    kept = old_available(stage, old)
    if kept is None or stage.weighed is None:
        return ()
    return tuple(d for d in stage.domains if kept.get(d, 0.0) == 0 and d not in stage.weighed)


def decision_config(
    stage: Stage,
    tokens: int,
    seed: int,
    old: Mixture | None = None,
    *,
    model: ModelConfig | None = None,
    rows: Mapping[str, int] | None = None,
    drawn: Mapping[str, int] | None = None,
) -> SearchConfig:
    """The configuration of one decision.

    Args:
        stage: The stage.
        tokens: Training tokens that the mixture is for.
        seed: Of this life.
        old: Old mixture.
        model: How the model was loaded; None: it is not kept on disk.
        rows: Training sequences each domain has: what is used up or was rejected is left out, limits of repetition are what is
            left of them. None: as the configuration alone says.
        drawn: Sequences drawn so far.

    Raises:
        ConfigError: What is wrong with the stage's own settings.
        DataError: Too little is left to choose from.
    """
    settings, domains, weighed = stage.settings, {n: stage.life.domains[n] for n in stage.domains}, stage.weighed
    if rows is not None:
        drawn, limits, left_out = drawn or {}, stage.epochs_allowed, rejected(stage, old)
        old = old_available(stage, old)
        left = {n: _epochs_left(limits.get(n), rows[n], drawn.get(n, 0)) for n in available(stage, rows, drawn)}
        domains = {n: changed(domains[n], max_epochs=epochs) for n, epochs in left.items() if n not in left_out}
        kept = {} if old is None else {n: s for n, s in old.items() if n in domains}
        old = Mixture.normalised(kept) if kept else None
        weighed = tuple(d for d in weighed or () if d in domains) or None
        settings = changed(
            settings, solve=changed(settings.solve.restricted(list(domains), settings.targets), max_epochs=None)
        )
    return SearchConfig(
        **{item.name: getattr(settings, item.name) for item in fields(SearchSettings)},
        model=model or ModelConfig(name=MODEL),
        domains=domains,
        old_mixture=None if old is None else dict(old),
        new_domains=weighed,
        budget=BudgetConfig(tokens=tokens),
        objective=stage.objective,
        seed=seed,
    )


def _epochs_left(limit: float | None, rows: int, drawn: int) -> float | None:
    """Of a limit of repetition; one sequence less than is left, for a plan rounds shares to whole sequences."""
    return None if limit is None else (math.floor(limit * rows) - drawn - 1) / rows


def fixed_mixture(stage: Stage, old: Mixture | None, rows: Mapping[str, int]) -> Mixture:
    """What a segment without a decision is trained on, over the stage's domains."""
    wanted = stage.config.prefix_mixture if stage.searched else stage.config.mixture
    if isinstance(wanted, Mapping):
        return Mixture.of(wanted).on(stage.domains)
    if wanted == "size":
        return Mixture.normalised({n: float(rows[n]) for n in stage.domains})
    if wanted == "current":
        current = old_available(stage, old)
        assert current is not None  # the configuration was checked for it
        return current.on(stage.domains)
    return Mixture.uniform(stage.domains)
