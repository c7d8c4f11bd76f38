"""Many small robust fits at once: one batched Levenberg-Marquardt for the log-linear law.

Starts, evaluation sets, leave-one-out refits and bootstrap draws are all the same problem with other
numbers, so they run as one batch. That is what makes intervals free: 512 runs x 17 domains x 13 laws with
leave-one-out and 200 draws take about two seconds on one core (`benchmarks/law_speed.py`).

Shape letters: B problems in the batch, M points, K free exponents (the rank of the design).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.mixing.mixture import FloatArray

MAX_DAMPING = 1e12
MAX_EXPONENT = 50.0
"""Largest norm of a law's exponents: from one corner of the simplex to another a loss changes by at most e^70."""
_KRON_LIMIT = 4_000_000  # entries of the precomputed Z (x) Z; above it the product is formed per problem
_CHUNK = 6_000_000  # residuals (B x M) held at once


@dataclass(frozen=True)
class Parameters:
    """Parameters of B laws `y = c + exp(Z z) + gamma v`."""

    c: FloatArray  # (B,)
    z: FloatArray  # (B, K)
    gamma: FloatArray  # (B,)

    def take(self, index: FloatArray | np.ndarray) -> Parameters:
        """Rows of the batch."""
        return Parameters(self.c[index], self.z[index], self.gamma[index])


def huber(residuals: FloatArray, delta: float) -> FloatArray:
    """Huber loss: `r^2 / 2` inside `delta`, linear outside."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def evaluate(Z: FloatArray, v: FloatArray | None, params: Parameters) -> tuple[FloatArray, FloatArray]:
    """Predictions (B, M) and the exponential part alone (B, M)."""
    growth = np.exp(np.clip(params.z @ Z.T, -60.0, 60.0))
    predicted = params.c[:, None] + growth
    if v is not None:
        predicted = predicted + params.gamma[:, None] * v
    return predicted, growth


def fit_batch(
    Z: FloatArray,
    Y: FloatArray,
    start: Parameters,
    *,
    v: FloatArray | None = None,
    weights: FloatArray | None = None,
    delta: float = 0.02,
    c_bounds: tuple[FloatArray, FloatArray],
    max_iterations: int = 60,
    tolerance: float = 1e-10,
) -> tuple[Parameters, FloatArray]:
    r"""Minimise `sum_m W_bm huber(y_bm - c_b - exp(Z_m . z_b) - gamma_b v_m)` for every problem b.

    Gauss-Newton on the Huber weights with Marquardt damping per problem; `c` stays inside its bounds by an
    active set of one.

    Args:
        Z: Reduced mixtures, (M, K).
        Y: Losses in nats per token, (B, M).
        start: Where to begin, batch of B.
        v: A covariate that enters linearly, (M,), or None.
        weights: Non-negative row weights, of Y's shape; None: all one.
        delta: Huber's threshold in nats.
        c_bounds: Lower and upper bound of `c`, (B,) each.
        max_iterations: At most so many steps; the batch stops when every problem has converged.
        tolerance: Relative decrease of the objective that counts as converged.

    Returns:
        Parameters and objective (B,).
    """
    batch, points = Y.shape
    rows = max(1, _CHUNK // max(points, 1))
    if batch > rows:  # bounded memory whatever the number of draws
        parts = []
        for first in range(0, batch, rows):
            part = slice(first, first + rows)
            parts.append(
                fit_batch(
                    Z,
                    Y[part],
                    Parameters(start.c[part], start.z[part], start.gamma[part]),
                    v=v,
                    weights=None if weights is None else weights[part],
                    delta=delta,
                    c_bounds=(c_bounds[0][part], c_bounds[1][part]),
                    max_iterations=max_iterations,
                    tolerance=tolerance,
                )
            )
        joined = Parameters(*(np.concatenate([getattr(p, f) for p, _ in parts]) for f in ("c", "z", "gamma")))
        return joined, np.concatenate([objective for _, objective in parts])
    return _levenberg_marquardt(Z, Y, start, v, weights, delta, c_bounds, max_iterations, tolerance)


def _levenberg_marquardt(
    Z: FloatArray,
    Y: FloatArray,
    start: Parameters,
    v: FloatArray | None,
    weights: FloatArray | None,
    delta: float,
    c_bounds: tuple[FloatArray, FloatArray],
    max_iterations: int,
    tolerance: float,
) -> tuple[Parameters, FloatArray]:
    W = np.ones_like(Y) if weights is None else weights
    kron = (Z[:, :, None] * Z[:, None, :]).reshape(len(Z), -1) if Z.size * Z.shape[1] <= _KRON_LIMIT else None
    low, high = c_bounds
    c, z, gamma = np.clip(start.c, low, high), start.z.copy(), start.gamma.copy()
    predicted, growth = evaluate(Z, v, Parameters(c, z, gamma))
    objective = (W * huber(Y - predicted, delta)).sum(axis=1)
    damping = np.full(len(Y), 1e-3)
    active = np.arange(len(Y))
    for _ in range(max_iterations):
        here = Parameters(c[active], z[active], gamma[active])
        step = _step(
            Z,
            kron,
            v,
            Y[active] - predicted[active],
            growth[active],
            W[active],
            delta,
            damping[active],
            here.c,
            low[active],
            high[active],
        )
        z_trial = here.z + step[:, 2:]
        size = np.sqrt(np.sum(z_trial**2, axis=1))
        z_trial *= np.minimum(1.0, MAX_EXPONENT / np.maximum(size, 1e-300))[:, None]
        c_trial = np.clip(here.c + step[:, 0], low[active], high[active])
        trial = Parameters(c_trial, z_trial, here.gamma + step[:, 1])
        trial_predicted, trial_growth = evaluate(Z, v, trial)
        value = (W[active] * huber(Y[active] - trial_predicted, delta)).sum(axis=1)
        better = value <= objective[active]
        gain = np.where(better, objective[active] - value, np.inf)
        converged = better & (gain <= tolerance * (objective[active] + 1e-16))
        took = active[better]
        c[took], z[took], gamma[took] = trial.c[better], trial.z[better], trial.gamma[better]
        predicted[took], growth[took], objective[took] = (
            trial_predicted[better],
            trial_growth[better],
            value[better],
        )
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 6)
        active = active[~converged & (damping[active] < MAX_DAMPING)]
        if not active.size:
            break
    return Parameters(c, z, gamma), objective


def _step(
    Z: FloatArray,
    kron: FloatArray | None,
    v: FloatArray | None,
    residual: FloatArray,
    growth: FloatArray,
    W: FloatArray,
    delta: float,
    damping: FloatArray,
    c: FloatArray,
    low: FloatArray,
    high: FloatArray,
) -> FloatArray:
    """One damped Gauss-Newton step, (B, 2 + K): c, gamma, z."""
    batch, rank = len(residual), Z.shape[1]
    robust = W * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    normal = np.zeros((batch, rank + 2, rank + 2))
    right = np.zeros((batch, rank + 2))
    weighted_growth = robust * growth
    normal[:, 0, 0] = robust.sum(axis=1)
    normal[:, 0, 2:] = weighted_growth @ Z
    squares = weighted_growth * growth
    if kron is not None:
        normal[:, 2:, 2:] = (squares @ kron).reshape(batch, rank, rank)
    else:
        from scipy.linalg.blas import dsyrk

        for b in range(batch):  # one product each, its upper half: all at once would hold B M K numbers
            normal[b, 2:, 2:] = dsyrk(1.0, (Z * np.sqrt(squares[b])[:, None]).T)
    right[:, 0] = (robust * residual).sum(axis=1)
    right[:, 2:] = (weighted_growth * residual) @ Z
    if v is not None:
        normal[:, 1, 1] = robust @ v**2
        normal[:, 0, 1] = robust @ v
        normal[:, 1, 2:] = weighted_growth @ (Z * v[:, None])
        right[:, 1] = (robust * residual) @ v
    else:
        normal[:, 1, 1] = 1.0
    upper = np.triu(np.ones((rank + 2, rank + 2), dtype=bool))
    normal = np.where(upper, normal, np.swapaxes(normal, 1, 2))
    # c at a bound and pushed outward: leave it out of this step.
    frozen = ((c <= low) & (right[:, 0] < 0)) | ((c >= high) & (right[:, 0] > 0))
    normal[frozen, 0, :] = 0.0
    normal[frozen, :, 0] = 0.0
    normal[frozen, 0, 0] = 1.0
    right[frozen, 0] = 0.0
    diagonal = np.einsum("bii->bi", normal)
    diagonal += damping[:, None] * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    return np.linalg.solve(normal, right[..., None])[..., 0]
