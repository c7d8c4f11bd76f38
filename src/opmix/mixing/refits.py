"""Refits near a fitted law, many at once: left-one-out points and bootstrap draws of large tables.

A refit differs from the fit by one point less or by losses a little off, so the fit's own Gauss-Newton matrix serves them all: it is
factorised once, a point less is a change of rank one, and an iteration costs products of (B, M) with (M, K) where a matrix of each refit's
own would cost B M K^2. Gradients are exact, so what converges is stationary.

Shape letters as in `least_squares`: B refits of one law, M points, K exponents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from opmix.mixing.least_squares import MAX_EXPONENT, Parameters, evaluate, huber
from opmix.mixing.mixture import FloatArray

_ITERATIONS = 60
_TOLERANCE = 1e-6
"""Relative decrease of the objective that counts as converged. At 1e-7 a large table takes half as long again, and intervals differ by less
than another seed of the draws changes them."""
_LEAST_REST = 1e-3
"""Of a left-out point's own weight in the fit; where nothing else holds a direction, it moves a thousandfold at most."""
_RIDGE = 1e-10
_MEMORY = 8


@dataclass(frozen=True)
class _Factors:
    """The fit's Gauss-Newton matrix, with the constant free and held."""

    J: FloatArray  # (M, 2 + K): constant, covariate, exponents
    free: tuple[FloatArray, bool]
    held: tuple[FloatArray, bool]

    @classmethod
    def of(cls, Z: FloatArray, v: FloatArray | None, growth: FloatArray, weight: FloatArray) -> _Factors:
        J = np.column_stack([np.ones(len(Z)), np.zeros(len(Z)) if v is None else v, growth[:, None] * Z])
        normal = (J * weight[:, None]).T @ J
        held = normal.copy()
        held[0, :] = held[:, 0] = 0.0
        factors = []
        for matrix in (normal, held):
            scale = np.diag(matrix).max()
            empty = np.diag(matrix) <= 0
            matrix[empty, empty] = scale
            matrix[np.diag_indices_from(matrix)] += _RIDGE * scale
            factors.append(cho_factor(matrix, lower=True))
        return cls(J, *factors)

    @cached_property
    def spread_free(self) -> FloatArray:
        """The inverse on J's rows, (M, 2 + K)."""
        found: FloatArray = cho_solve(self.free, self.J.T).T
        return found

    @cached_property
    def spread_held(self) -> FloatArray:
        """The same with the constant held."""
        without = self.J.copy()
        without[:, 0] = 0.0
        found: FloatArray = cho_solve(self.held, without.T).T
        return found

    def solved(
        self, gradient: FloatArray, *, held: np.ndarray, left_out: np.ndarray | None, weight: FloatArray
    ) -> FloatArray:
        """The inverse matrix on gradients (B, 2 + K), the constant held where `held`."""
        gradient = np.where(held[:, None] & _constant(gradient), 0.0, gradient)
        step = np.empty_like(gradient)
        spread = np.empty_like(gradient)
        for rows, factor, name in ((held, self.held, "spread_held"), (~held, self.free, "spread_free")):
            if rows.any():
                step[rows] = cho_solve(factor, gradient[rows].T).T
                if left_out is not None:
                    spread[rows] = getattr(self, name)[left_out[rows]]
        if left_out is None:
            return step
        # Sherman and Morrison: the matrix without one point.
        row, own = self.J[left_out], weight[left_out]
        rest = np.maximum(1.0 - own * np.einsum("bk,bk->b", row, spread), _LEAST_REST)
        return step + spread * (own * np.einsum("bk,bk->b", row, step) / rest)[:, None]


def _constant(theta: FloatArray) -> np.ndarray:
    """Which column is the constant's."""
    return np.arange(theta.shape[1]) == 0


def refit(
    Z: FloatArray,
    Y: FloatArray,
    at: Parameters,
    *,
    v: FloatArray | None = None,
    left_out: np.ndarray | None = None,
    delta: float,
    highest: FloatArray,
    iterations: int = _ITERATIONS,
) -> Parameters:
    """Minimise the Huber loss of B laws from one fitted law on.

    Args:
        Z: Reduced mixtures, (M, K).
        Y: Losses in nats per token, (B, M).
        at: The fitted law, a batch of one.
        v: A covariate that enters linearly, (M,), or None.
        left_out: Point that each refit goes without, (B,); None: none.
        delta: Huber's threshold, nats.
        highest: Upper bound of the constant, (B,); the lower one is zero.
        iterations: At most.

    Returns:
        The refitted laws.
    """
    batch = len(Y)
    W = np.ones_like(Y)
    if left_out is not None:
        W[np.arange(batch), left_out] = 0.0
    first, grown = evaluate(Z, v, at)
    robust = np.minimum(1.0, delta / np.maximum(np.abs(Y - first), 1e-300)).mean(axis=0)
    factors = _Factors.of(Z, v, grown[0], robust)
    theta = np.repeat(np.column_stack([at.c, at.gamma, at.z]), batch, axis=0)

    def told(theta: FloatArray, on: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """Objective (B') and its gradient (B', 2 + K)."""
        predicted, growth = evaluate(Z, v, Parameters(theta[:, 0], theta[:, 2:], theta[:, 1]))
        residual = Y[on] - predicted
        pull = W[on] * np.clip(residual, -delta, delta)
        slope = np.zeros_like(theta)
        slope[:, 0], slope[:, 2:] = -pull.sum(axis=1), -(pull * growth) @ Z
        if v is not None:
            slope[:, 1] = -(pull @ v)
        return (W[on] * huber(residual, delta)).sum(axis=1), slope

    on = np.arange(batch)
    value, slope = told(theta, on)
    length, memory = np.ones(batch), _Memory.empty(batch, theta.shape[1])
    for _ in range(iterations):
        held = (theta[on, 0] <= 0) & (slope[on, 0] > 0) | (theta[on, 0] >= highest[on]) & (slope[on, 0] < 0)
        without = None if left_out is None else left_out[on]
        step = -memory.applied(
            on,
            np.where(held[:, None] & _constant(theta), 0.0, slope[on]),
            partial(factors.solved, held=held, left_out=without, weight=robust),
        )
        trial = _inside(theta[on] + length[on, None] * step, highest[on])
        found, there = told(trial, on)
        better = found <= value[on]
        took = on[better]
        memory.learn(took, trial[better] - theta[took], there[better] - slope[took])
        small = better & (value[on] - found <= _TOLERANCE * (value[on] + 1e-16)) & (length[on] == 1)
        memory.forget(on[~better])
        theta[took], value[took], slope[took] = trial[better], found[better], there[better]
        length[on] = np.where(better, 1.0, length[on] / 4)
        on = on[~small & (length[on] > 1e-7)]
        if not on.size:
            break
    return Parameters(theta[:, 0], theta[:, 2:], theta[:, 1])


@dataclass(frozen=True)
class _Memory:
    """Of every refit's last steps: what L-BFGS knows beyond the shared matrix."""

    steps: FloatArray  # (H, B, 2 + K)
    changes: FloatArray  # of the gradient
    weights: FloatArray  # (H, B); 0: nothing there

    @classmethod
    def empty(cls, batch: int, size: int) -> _Memory:
        return cls(np.zeros((_MEMORY, batch, size)), np.zeros((_MEMORY, batch, size)), np.zeros((_MEMORY, batch)))

    def learn(self, on: np.ndarray, step: FloatArray, change: FloatArray) -> None:
        for kept, new in ((self.steps, step), (self.changes, change)):
            kept[:-1, on] = kept[1:, on]
            kept[-1, on] = new
        product = np.einsum("bk,bk->b", step, change)
        self.weights[:-1, on] = self.weights[1:, on]
        self.weights[-1, on] = np.where(
            product > 1e-12 * np.einsum("bk,bk->b", change, change), 1 / np.maximum(product, 1e-300), 0.0
        )

    def forget(self, on: np.ndarray) -> None:
        self.weights[:, on] = 0.0

    def applied(self, on: np.ndarray, gradient: FloatArray, inverse: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """The two-loop recursion: an inverse Hessian on gradients (B', 2 + K)."""
        S, Y, rho = self.steps[:, on], self.changes[:, on], self.weights[:, on]
        alphas = np.zeros(rho.shape)
        for h in reversed(range(_MEMORY)):
            alphas[h] = rho[h] * np.einsum("bk,bk->b", S[h], gradient)
            gradient = gradient - alphas[h][:, None] * Y[h]
        result = inverse(gradient)
        for h in range(_MEMORY):
            beta = rho[h] * np.einsum("bk,bk->b", Y[h], result)
            result = result + (alphas[h] - beta)[:, None] * S[h]
        return result


def _inside(theta: FloatArray, highest: FloatArray) -> FloatArray:
    """Constants and exponents within their bounds."""
    theta[:, 0] = np.clip(theta[:, 0], 0.0, highest)
    size = np.sqrt(np.sum(theta[:, 2:] ** 2, axis=1))
    theta[:, 2:] *= np.minimum(1.0, MAX_EXPONENT / np.maximum(size, 1e-300))[:, None]
    return theta
