"""What methods that search before the run share: how long proxy runs are, swarms of mixtures, and what goes on record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.constraints import Constraints
from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import objective_values
from opmix.mixing.problem import SolveSettings
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import DecisionProblem
from opmix.protocols.trials import Start, TrialModel, TrialRunner, Trials
from opmix.runs.files import plain

_ATTEMPTS = 100
"""Draws for every mixture wanted before a swarm is given up (RegMix's `SAMPLE_MULTIPLIER`)."""


def proxy_model(runner: TrialRunner, share: float, start: Start, architecture: Mapping[str, Any]) -> TrialModel:
    """A proxy trained for `share` of the stage's tokens."""
    tokens = max(round(share * runner.problem.budget_tokens), 1)
    return TrialModel(tokens=tokens, start=start, architecture=dict(architecture))


def generator(problem: DecisionProblem, salt: int) -> np.random.Generator:
    """Random numbers of one method (`salt`) at one stage."""
    return np.random.default_rng([problem.seed, salt])


def swarm(
    prior: FloatArray,
    count: int,
    rng: np.random.Generator,
    *,
    strengths: tuple[float, float],
    minimum: float,
    ceilings: FloatArray | None = None,
) -> FloatArray:
    """Different mixtures around a prior: Dirichlet draws of random concentration.

    Args:
        prior: Centre, (C,), adds up to one.
        count: Mixtures wanted, N.
        rng: Source of randomness.
        strengths: Smallest and largest concentration; drawn uniformly in its logarithm.
        minimum: Shares below become 0, the others multiples of it; those then add up to one again.
        ceilings: Largest share of each, (C,); draws above are thrown away.

    Returns:
        Shares, (N, C).

    Raises:
        ConfigError: Not enough different mixtures in a hundred draws each.

    References:
        RegMix's `mixture_config/synthesize_mixture.py`, whose scheme Olmix keeps.
    """
    found: dict[tuple[float, ...], None] = {}
    for _ in range(_ATTEMPTS * count):
        strength = math.exp(rng.uniform(*np.log(strengths)))
        row = rng.dirichlet(np.maximum(prior * strength, 1e-3))  # smaller ones underflow to 0/0
        if ceilings is not None and np.any(row > ceilings):
            continue
        row = np.round(np.where(row < minimum, 0.0, row) / minimum)
        found.setdefault(tuple(np.round(row / row.sum(), 12)))
        if len(found) == count:
            rows: FloatArray = np.array(list(found))
            return rows / rows.sum(axis=1, keepdims=True)
    raise ConfigError(
        f"runs: {count}; only {len(found)} different mixtures in {_ATTEMPTS * count} draws around "
        f"{np.round(prior, 4).tolist()}; "
        "expected fewer runs, higher strengths or looser caps"
    )


def repetition_caps(problem: DecisionProblem, max_epochs: float | None) -> Constraints:
    """No domain's tokens more than `max_epochs` times; nothing where that leaves no mixture, or where it is None."""
    if max_epochs is None or max_epochs * sum(problem.available_tokens.values()) <= problem.budget_tokens:
        return Constraints()
    return Constraints(
        available_tokens=problem.available_tokens,
        max_epochs=dict.fromkeys(problem.domains, max_epochs),
        budget=problem.budget_tokens,
    )


# -- what is minimised ---------------------------------------------------------------------------------------------


def aim(context: TrialRunner, trials: Trials) -> SolveSettings:
    """What a method minimises, without a KL: all sets alike; where there are targets, what the configuration says of them."""
    if set(trials.metrics) <= set(context.problem.domains):
        return SolveSettings(kl=0.0)
    return replace(context.solve_settings(trials.baseline, trials.metrics), kl=0.0, prior=None)


def aimed(losses: FloatArray, settings: SolveSettings) -> FloatArray:
    """The objective (M,) of losses (M, E)."""
    if settings.objective == "mean":
        return np.asarray(losses.mean(axis=1))
    return objective_values(losses, settings)


# -- on record -----------------------------------------------------------------------------------------------------


def settings_of(method: Any) -> dict[str, Any]:
    """A method's settings, JSON-like."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(method).items()}


def trial_rows(trials: Trials, **told: Any) -> list[dict[str, Any]]:
    """One entry a trained (or averaged) model; `told` is added to each."""
    return [
        {
            **told,
            "mixture": dict(m),
            "losses": dict(zip(trials.metrics, map(float, row), strict=True)),
            "mean": float(row.mean()),
        }
        for m, row in zip(trials.mixtures, trials.losses, strict=True)
    ]


def law_record(fit: LawFit) -> dict[str, Any]:
    """A law and how well it predicts points it was fitted without."""
    law, losses = fit.law, fit.losses
    spread = np.sum((losses - losses.mean(axis=0)) ** 2, axis=0)
    left_out = 1 - np.sum(fit.residuals**2, axis=0) / spread
    return {
        metric: {
            **plain({k: v for k, v in law.json(e).items() if k != "interference"}),
            "rmse": q.rmse,
            "left_out_rmse": q.loo_rmse,
            "left_out_r2": float(left_out[e]),
            "left_out_spearman": q.loo_spearman,
        }
        for e, (metric, q) in enumerate(zip(law.metrics, fit.quality, strict=True))
    }


def check_settings(
    method: Any, *, counts: tuple[str, ...] = (), shares: tuple[str, ...] = (), positive: tuple[str, ...] = ()
) -> None:
    """Counts are whole and at least 1, shares in (0, 1], the rest above 0.

    Raises:
        ConfigError: All settings that are not.
    """
    told = {name: getattr(method, name) for name in (*counts, *shares, *positive)}
    rules: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
        (counts, "a whole number >= 1", lambda x: isinstance(x, int) and x >= 1),
        (shares, "a number in (0, 1]", lambda x: isinstance(x, int | float) and 0 < x <= 1),
        (positive, "a number > 0", lambda x: isinstance(x, int | float) and x > 0),
    )
    problems = [
        f"{name}: {told[name]!r}; expected {expected}"
        for names, expected, holds in rules
        for name in names
        if told[name] is not None and not holds(told[name])
    ]
    if problems:
        raise ConfigError(problems)
