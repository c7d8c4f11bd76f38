"""How sure: draws of the whole law, and what they say of the mixture.

A wild bootstrap. Each draw adds to the fitted losses the *left-one-out* residuals times one standard normal
per point (the same for all evaluation sets, so their correlation stays), plus, where held-out sequences are
known, the change from drawing other sequences (the same for all points, because evaluation is paired); then
everything is refitted. Compared with the alternatives: resampling rows breaks the small designs that are normal
here (nine points on a line); a Laplace approximation misjudges the curved valley between `c` and `t`, which
matters because `c` is weakly identified; left-one-out residuals carry the misfit of the law and the degrees of
freedom it used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.errors import InfeasibleError, SolverError
from opmix.mixing.constraints import Constraints
from opmix.mixing.law import LawFit, LogLinearLaw
from opmix.mixing.least_squares import Parameters
from opmix.mixing.mixture import FloatArray
from opmix.mixing.solver import Coordinates, SolveSettings, solve


@dataclass(frozen=True)
class LawDraws:
    """Posterior draws of a law; B draws."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    c: FloatArray  # (B, E)
    t: FloatArray  # (B, E, D)
    gamma: FloatArray  # (B, E)
    rank: int
    ceiling: FloatArray  # (E,) no prediction exceeds it: ten times the largest loss seen

    def __len__(self) -> int:
        return len(self.c)

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """Losses in nats per token, (B, M, E)."""
        exponent = np.einsum("md,bed->bme", np.atleast_2d(mixtures), self.t)
        # A draw may extrapolate absurdly where no point holds it; past the ceiling it only says "far worse".
        losses: FloatArray = np.minimum(self.c[:, None, :] + np.exp(np.minimum(exponent, 50.0)), self.ceiling)
        return losses

    def law(self, index: int) -> LogLinearLaw:
        """One draw as a law."""
        return LogLinearLaw(self.metrics, self.domains, self.c[index], self.t[index], self.gamma[index], self.rank)


def draw_laws(fit: LawFit, *, num_draws: int = 200, seed: int = 0, noise: FloatArray | None = None) -> LawDraws:
    """Draw laws from the wild bootstrap described above.

    Args:
        fit: A fitted law.
        num_draws: B.
        seed: Of the normal multipliers.
        noise: Evaluation noise, (B, M, E) in nats: losses on resampled sequences minus losses.
    """
    points, num_metrics = fit.fitted.shape
    multipliers = np.random.default_rng(seed).standard_normal((num_draws, points))
    losses = fit.fitted + multipliers[:, :, None] * fit.residuals
    if noise is not None:
        losses = losses + noise
    Y = losses.transpose(0, 2, 1).reshape(num_draws * num_metrics, points)
    start = Parameters(
        *(np.tile(a, (num_draws,) + (1,) * (a.ndim - 1)) for a in (fit.params.c, fit.params.z, fit.params.gamma))
    )
    params, _ = fit.problem.solve(Y, start, max_iterations=10 if points > 100 else 40)
    t = (params.z @ fit.problem.basis.T).reshape(num_draws, num_metrics, -1)
    return LawDraws(
        fit.law.metrics,
        fit.law.domains,
        params.c.reshape(num_draws, num_metrics),
        t,
        params.gamma.reshape(num_draws, num_metrics),
        fit.law.rank,
        10 * fit.problem.losses.max(axis=0),
    )


@dataclass(frozen=True)
class MixtureDraws:
    """The optimum of every drawn law."""

    domains: tuple[str, ...]
    optima: FloatArray  # (B', D); B' <= B: draws under which the constraints cannot hold are left out
    infeasible: int
    kept: npt.NDArray[np.intp]  # (B',) which draws the optima are of

    def interval(self, level: float) -> dict[str, tuple[float, float]]:
        """Central interval of every domain's share at `level`."""
        tail = 100 * (1 - level) / 2
        low, high = np.percentile(self.optima, [tail, 100 - tail], axis=0)
        return {d: (float(a), float(b)) for d, a, b in zip(self.domains, low, high, strict=True)}


def solve_draws(
    draws: LawDraws, coordinates: Coordinates, settings: SolveSettings, constraints: Constraints
) -> MixtureDraws:
    """Solve the mixture problem under every drawn law."""
    optima, kept = [], []
    for index in range(len(draws)):
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
            f"the constraints cannot hold under any of {len(draws)} draws of the law's posterior, though they do under its "
            "point estimate; loosen the loss limits, which sit inside the law's noise"
        )
    return MixtureDraws(draws.domains, np.array(optima), len(draws) - len(kept), np.array(kept, dtype=np.intp))


def percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    """Central interval of a sample."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


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
