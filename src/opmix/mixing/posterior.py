"""How sure: what draws of the law say of the mixture, and what drawing other held-out text would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.errors import InfeasibleError, SolverError
from opmix.mixing.constraints import Constraints
from opmix.mixing.free_optima import free_optima
from opmix.mixing.log_linear import LogLinearDraws
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.numerics import quantiles
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve
from opmix.protocols.law import LawDraws


@dataclass(frozen=True)
class MixtureDraws:
    """The optimum of every drawn law."""

    domains: tuple[str, ...]
    optima: FloatArray  # (B', D); B' <= B: draws under which the constraints cannot hold are left out
    infeasible: int
    kept: npt.NDArray[np.intp]  # (B',) which draws the optima are of

    def interval(self, level: float) -> dict[str, tuple[float, float]]:
        """Central interval of every domain's share at `level`."""
        low, high = quantiles(self.optima, _ends(level))
        return {d: (float(a), float(b)) for d, a, b in zip(self.domains, low, high, strict=True)}


def solve_draws(
    draws: LawDraws,
    coordinates: Coordinates,
    settings: SolveSettings,
    constraints: Constraints,
    near: Mixture | None = None,
) -> MixtureDraws:
    """Solve the mixture problem under every drawn law.

    Args:
        draws: The laws.
        coordinates: What can be varied.
        settings: Objective, KL, prior.
        constraints: What the mixture must obey.
        near: The optimum of the law itself, to begin from.
    """
    optima, kept = [], []
    known = _free(draws, coordinates, settings, constraints, near)
    for index in range(len(draws)):
        if known is not None and np.isfinite(known[index]).all():
            optima.append(known[index])
            kept.append(index)
            continue
        try:
            answer = solve(
                draws.law(index),
                coordinates=coordinates,
                settings=settings,
                constraints=constraints,
                certify=False,
            )
        except (InfeasibleError, SolverError):
            continue
        optima.append(answer.mixture.weights)
        kept.append(index)
    if not optima:
        raise SolverError(
            f"the constraints cannot hold under any of {len(draws)} draws of the law's posterior, though they do under "
            "its "
            "point estimate; loosen the loss limits, which sit inside the law's noise"
        )
    return MixtureDraws(draws.domains, np.array(optima), len(draws) - len(kept), np.array(kept, dtype=np.intp))


def _free(
    draws: LawDraws,
    coordinates: Coordinates,
    settings: SolveSettings,
    constraints: Constraints,
    near: Mixture | None,
) -> FloatArray | None:
    """Optima (B, D) where no constraint binds, NaN elsewhere; None where every draw needs the conic solver."""
    prior = (settings.prior or Mixture.uniform(draws.domains)).on(draws.domains).weights
    free = coordinates.names == coordinates.domains and settings.objective in ("mean", "weighted")
    if not (isinstance(draws, LogLinearDraws) and free and settings.kl > 0 and prior.min() > 0):
        return None
    omega = settings.weights(len(draws.metrics))
    found = free_optima(draws.t, omega, settings.kl, prior, prior if near is None else near.weights)
    broken = np.asarray(np.isnan(found).any(axis=1))
    for row in constraints.rows(draws.domains):
        broken |= ~np.less_equal(found @ row.row, row.bound)
    if constraints.max_loss:
        told = draws.predict_each(np.where(broken[:, None], prior, found)[:, None])[:, 0]
        for metric, limit in constraints.max_loss.items():
            broken |= ~np.less_equal(told[:, draws.metrics.index(metric)], limit)
    found[broken] = np.nan
    return found


def percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    """Central interval of a sample."""
    low, high = quantiles(values, _ends(level))
    return float(low), float(high)


def _ends(level: float) -> tuple[float, float]:
    """Shares of a sample below the two ends of its central interval; by way of percent, whose rounding recorded intervals have."""
    tail = 100 * (1 - level) / 2
    return tail / 100, (100 - tail) / 100


def resampling_noise(
    nll: Sequence[FloatArray], tokens: Sequence[FloatArray], *, num_draws: int, seed: int
) -> FloatArray:
    """Losses on resampled held-out sequences minus losses, (B, M, E).

    Args:
        nll: Per evaluation set, summed nats of each sequence at each point, (M, S_e).
        tokens: Per evaluation set, scored tokens of each sequence, (S_e,).
        num_draws: B.
        seed: Of the resampling weights (Bayesian bootstrap: smooth, no empty resamples).
    """
    rng = np.random.default_rng(seed)
    columns = []
    for sums, counts in zip(nll, tokens, strict=True):
        weights = rng.standard_exponential((num_draws, len(counts)))
        resampled = (weights @ sums.T) / (weights @ counts)[:, None]
        columns.append(resampled - sums.sum(axis=1) / counts.sum())
    return np.stack(columns, axis=2)
