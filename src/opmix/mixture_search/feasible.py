"""Whether a decision can have an answer at all: known from settings and numbers of tokens, before anything is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from opmix.config import SearchConfig
from opmix.errors import ConfigError
from opmix.methods.op_mix import method_of
from opmix.mixing.design import StageDesign, coordinates_of, new_domains
from opmix.mixing.log_linear import LogLinearLaw
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve
from opmix.protocols.mixing_method import DecisionProblem
from opmix.target import objective_weights


def problem_of(config: SearchConfig, available: Mapping[str, int]) -> DecisionProblem:
    """The decision that a configuration asks for.

    Args:
        config: The search.
        available: Supervised tokens to train on by domain; where one is missing, as many as the budget.
    """
    return DecisionProblem(
        domains=tuple(config.domains),
        old=None if config.old_mixture is None else Mixture.of(config.old_mixture),
        budget_tokens=config.budget.tokens,
        available_tokens={name: available.get(name, config.budget.tokens) for name in config.domains},
        seed=config.seed,
        new=config.new_domains,
    )


def prior_of(config: SearchConfig, problem: DecisionProblem) -> Mixture:
    """What the KL term pulls towards.

    Raises:
        ConfigError: It has no mass on a new domain, which KL would then forbid.
    """
    chosen = config.solve.prior
    if isinstance(chosen, Mapping):
        return Mixture.normalised({name: chosen.get(name, 0.0) for name in problem.domains})
    if chosen == "current":
        new = new_domains(problem.domains, problem.current)
        if new and config.pulls:
            raise ConfigError(
                f"solve.prior: 'current' has no mass on the new domain {new[0]!r}, so KL would forbid it; "
                "use 'uniform', 'size' or shares by domain"
            )
        return problem.current
    if chosen == "size":
        return problem.by_size
    coordinates = coordinates_of(problem.domains, problem.old, config.new_domains)
    return coordinates.mixture(np.full(len(coordinates.names), 1 / len(coordinates.names)))


def solve_settings_of(
    config: SearchConfig,
    problem: DecisionProblem,
    baseline: FloatArray,
    metrics: Sequence[str],
    *,
    silent: Collection[str] = (),
    bytes_per_token: Mapping[str, float] | None = None,
) -> SolveSettings:
    """What a search minimises.

    Args:
        config: The search.
        problem: Its decision.
        baseline: The current model's losses, (E,) nats per token.
        metrics: E evaluation sets.
        silent: Targets that have no say.
        bytes_per_token: Of evaluation sets, for means of bits per byte; None: there is no other unit than nats.
    """
    solve = config.solve
    objective, omega = solve.objective, None
    if config.targets or objective == "weighted" or (objective == "perplexity" and solve.weights):
        omega = objective_weights(config.targets, solve.weights, metrics)
        omega = omega * [m not in silent for m in metrics]
    if solve.unit == "bpb" and bytes_per_token is not None:  # a mean of bits per byte is one of nats with other weights
        omega = (np.ones(len(metrics)) if omega is None else omega) / [bytes_per_token.get(m, 1.0) for m in metrics]
    if omega is not None and objective == "worst_case":  # sets without a weight are never the worst
        baseline = np.where(omega > 0, baseline, np.inf)
    return SolveSettings(
        objective="weighted" if omega is not None and objective == "mean" else objective,
        omega=omega,
        reference=baseline,
        kl=config.kl,
        prior=prior_of(config, problem),
    )


def check_decision(
    config: SearchConfig, problem: DecisionProblem, available: Mapping[str, int], *, certain: bool = True
) -> StageDesign:
    """Design the probes, and solve a flat problem: what contradicts itself is named.

    Args:
        config: The search.
        problem: Its decision.
        available: Tokens that limits of repetition count from; domains that are not in it have no limit.
        certain: Whether `problem.old` is the old mixture; else it only stands for one that an earlier stage will find, and nothing is
            said that depends on its shares.

    Raises:
        ConfigError: The prior, or the number of interpolation points.
        InfeasibleError: No mixture satisfies the constraints.
    """
    prior = prior_of(config, problem)
    design = method_of(config).design(problem)
    coordinates = design.coordinates if certain else Coordinates.identity(problem.domains)
    solve(
        LogLinearLaw.flat(problem.domains),
        coordinates=coordinates,
        settings=SolveSettings(kl=config.kl, prior=prior if certain else None),
        constraints=config.constraints(available=available),
    )
    return design
