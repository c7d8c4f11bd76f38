"""What is on offer at a decision: domains with tokens left, the old mixture among them, and the search's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opmix.config import SearchConfig
from opmix.errors import DataError
from opmix.lifecycle.stages import Segment, Stage
from opmix.lifecycle.steps import epochs_allowed
from opmix.mixing.mixture import Mixture


def available(stage: Stage, rows: Mapping[str, int], drawn: Mapping[str, int]) -> tuple[str, ...]:
    """Domains that still have tokens under their limit of repetition.

    Args:
        stage: The stage.
        rows: Training sequences each domain has.
        drawn: Sequences drawn so far.

    Raises:
        DataError: Fewer than two are left to choose from.
    """
    limits = epochs_allowed(stage)
    left = tuple(d for d in stage.domains if d not in limits or math.floor(limits[d] * rows[d]) - drawn.get(d, 0) >= 2)
    if len(left) < 2:
        raise DataError(
            f"stage {stage.config.name!r}: {list(left)} left to choose from, the other domains are used up; raise max_epochs, "
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
            f"stage {stage.config.name!r}: none of the old mixture's domains {learned} is on offer; keep at least one to replay, "
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
    stage: Stage, segment: Segment, old: Mixture | None, rows: Mapping[str, int], drawn: Mapping[str, int], seed: int
) -> SearchConfig:
    """The configuration of one decision: old mixture and limits of repetition as they are now.

    Raises:
        DataError: Too little is left to choose from.
    """
    limits, kept = epochs_allowed(stage), old_available(stage, old)
    left_out = rejected(stage, old)
    names = tuple(d for d in available(stage, rows, drawn) if d not in left_out)
    config = stage.search(kept, stage.tokens_of(segment.stop - segment.start), seed)
    domains = {}
    for name in names:
        # One sequence less than is left: a plan rounds shares to whole sequences.
        left = (
            None
            if name not in limits
            else (math.floor(limits[name] * rows[name]) - drawn.get(name, 0) - 1) / rows[name]
        )
        domains[name] = config.domains[name].model_copy(update={"max_epochs": left})
    shares = None if kept is None else {n: s for n, s in kept.items() if n in names}
    weighed = tuple(d for d in config.new_domains or () if d in names) or None
    changes = {
        "domains": domains, "new_domains": weighed, "old_mixture": dict(Mixture.normalised(shares)) if shares else None,
        "solve": config.solve.model_copy(update={"max_epochs": None}),
    }  # fmt: skip
    return config.model_copy(update=changes)


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
