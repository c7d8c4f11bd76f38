"""Refits near a fitted law, many at once: left-one-out points and bootstrap draws of large tables.

A refit differs from the fit by one point less or by losses a little off, so the fit's own Gauss-Newton matrix serves them all: it is
factorised once, a point less is a change of rank one, and an iteration costs products of (B, M) with (M, K) where a matrix of each refit's
own would cost B M K^2. Gradients are exact, so what converges is stationary; steps are taken where the valley is straight (`curvature`).

Shape letters as in `least_squares`: B refits of one law, M points, K exponents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from opmix.mixing.curvature import CurvatureForm, Told
from opmix.mixing.least_squares import Parameters
from opmix.mixing.mixture import FloatArray

ITERATIONS = 60
TOLERANCE = 1e-6
"""Relative decrease of the objective that counts as converged. At 1e-7 a large table takes half as long again, and intervals differ by less
than another seed of the draws changes them."""
_LEAST_REST = 1e-3
"""Of a left-out point's own weight in the fit; where nothing else holds a direction, it moves a thousandfold at most."""
_RIDGE = 1e-10
_MEMORY = 8


@dataclass(frozen=True)
class _Factors:
    """The fit's Gauss-Newton matrix, as its Cholesky factor."""

    J: FloatArray  # (M, 2 + K): curvature, covariate, slopes
    weight: FloatArray  # (M,) of the points
    factor: Any

    @classmethod
    def of(cls, J: FloatArray, weight: FloatArray) -> _Factors:
        from scipy.linalg import cho_factor

        root = J * np.sqrt(weight)[:, None]
        normal = root.T @ root
        diagonal = np.einsum("kk->k", normal)
        scale = diagonal.max()
        diagonal += np.where(diagonal <= 0, scale, _RIDGE * scale)
        return cls(J, weight, cho_factor(normal, lower=True, overwrite_a=True, check_finite=False))

    def _solved(self, rows: FloatArray) -> FloatArray:
        from scipy.linalg import cho_solve

        found: FloatArray = cho_solve(self.factor, rows.T, check_finite=False).T
        return found

    @cached_property
    def spread(self) -> FloatArray:
        """The inverse on J's rows, (M, 2 + K)."""
        return self._solved(self.J)

    def solved(self, gradient: FloatArray, left_out: np.ndarray | None) -> FloatArray:
        """The inverse matrix on gradients (B, 2 + K), each without its point left out."""
        step = self._solved(gradient)
        if left_out is None:
            return step
        # Sherman and Morrison: the matrix without one point.
        row, spread, own = self.J[left_out], self.spread[left_out], self.weight[left_out]
        rest = np.maximum(1.0 - own * np.einsum("bk,bk->b", row, spread), _LEAST_REST)
        step += spread * (own * np.einsum("bk,bk->b", row, step) / rest)[:, None]
        return step


def refit(
    form: CurvatureForm,
    Y: FloatArray,
    at: Parameters,
    *,
    left_out: np.ndarray | None = None,
    delta: float,
    highest: FloatArray,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Parameters:
    """Minimise the Huber loss of B laws from one fitted law on.

    Args:
        form: Near that law.
        Y: Losses in nats per token, (B, M); where points are left out the same for all, (1, M).
        at: The fitted law, a batch of one.
        left_out: Point that each refit goes without, (B,); None: none.
        delta: Huber's threshold, nats.
        highest: Upper bound of the constant, (B,); the lower one is zero.
        iterations: At most.
        tolerance: Relative decrease of the objective that counts as converged.

    Returns:
        The refitted laws.
    """
    if left_out is not None:
        Y = np.broadcast_to(Y, (len(left_out), Y.shape[1]))
    start = form.theta(at)
    told = form.told(start)
    weight = np.minimum(1.0, delta / np.maximum(np.abs(Y - told.predicted), 1e-300)).mean(axis=0)
    factors = _Factors.of(form.jacobian(told), weight)
    value, pull = _robust(Y, told, delta, left_out)
    if left_out is None:
        slope = -form.pulled(pull, told)
    else:  # the gradient with all points, less one point's own part
        whole = np.clip(Y[:1] - told.predicted, -delta, delta)
        slope = whole[0, left_out, None] * factors.J[left_out] - form.pulled(whole, told)
    low, high = form.bounds(highest)
    thetas = np.repeat(start, len(Y), axis=0)
    now = _Running(np.arange(len(Y)), thetas, value, slope, np.ones(len(Y)), Y, high, left_out)
    done = thetas.copy()
    for turn in range(iterations):
        trial = form.inside(now.theta + now.step(factors, low), (low, now.high))
        told = form.told(trial)
        value, pull = _robust(now.Y, told, delta, now.left_out)
        better = value <= now.value
        small = better & (now.value - value <= tolerance * (now.value + 1e-16)) & (now.length == 1)
        now.length = np.where(better, 1.0, now.length / 4)
        done[now.on[better]] = trial[better]
        going = ~small & (now.length > 1e-7)
        if turn + 1 == iterations or not going.any():
            break
        if not going.all():
            now = now.take(going)
            told, trial, value, pull, better = told.take(going), trial[going], value[going], pull[going], better[going]
        if better.all():
            now.moved(better, trial, value, -form.pulled(pull, told))
        else:
            now.moved(better, trial[better], value[better], -form.pulled(pull[better], told.take(better)))
    return form.parameters(done)


def _robust(Y: FloatArray, told: Told, delta: float, left_out: np.ndarray | None) -> tuple[FloatArray, FloatArray]:
    """Huber's loss (B,), and its slope by the predictions, turned round, (B, M); points left out have none."""
    residual = Y - told.predicted
    if left_out is not None:
        residual[np.arange(len(residual)), left_out] = 0.0
    pull = np.clip(residual, -delta, delta)
    residual -= 0.5 * pull
    return np.einsum("bm,bm->b", pull, residual), pull


@dataclass
class _Running:
    """The refits that are not done, B' of B, with their last steps: what L-BFGS knows beyond the shared matrix."""

    on: np.ndarray  # which of B
    theta: FloatArray
    value: FloatArray
    slope: FloatArray
    length: FloatArray
    Y: FloatArray
    high: FloatArray  # of the curvature
    left_out: np.ndarray | None
    steps: list[FloatArray] = field(default_factory=list)
    changes: list[FloatArray] = field(default_factory=list)
    """Of the slope."""
    weights: list[FloatArray] = field(default_factory=list)
    """(B',); 0: nothing known."""

    def take(self, rows: np.ndarray) -> _Running:
        """Some of them."""
        left_out = None if self.left_out is None else self.left_out[rows]
        where, now = (self.on[rows], self.theta[rows]), (self.value[rows], self.slope[rows], self.length[rows])
        steps, changes, weights = ([a[rows] for a in past] for past in (self.steps, self.changes, self.weights))
        return _Running(*where, *now, self.Y[rows], self.high[rows], left_out, steps, changes, weights)

    def step(self, factors: _Factors, low: float) -> FloatArray:
        """Where to, (B', 2 + K); one that would take the curvature out of its bounds is the best of those that end there."""
        step = self._solved(factors, self.slope, slice(None))
        step *= -self.length[:, None]
        k = self.theta[:, 0]
        allowed = np.clip(k + step[:, 0], low, self.high) - k
        crossing = np.flatnonzero(allowed != step[:, 0])
        if crossing.size:
            along = np.zeros((len(crossing), step.shape[1]))
            along[:, 0] = 1.0
            along = self._solved(factors, along, crossing)
            step[crossing] += along * ((allowed - step[:, 0])[crossing] / along[:, 0])[:, None]
        return step

    def _solved(self, factors: _Factors, gradient: FloatArray, rows: np.ndarray | slice) -> FloatArray:
        """The two-loop recursion around the shared matrix: an inverse Hessian on gradients, of some of the refits."""
        alphas = []
        known = [
            (s[rows], y[rows], rho[rows]) for s, y, rho in zip(self.steps, self.changes, self.weights, strict=True)
        ]
        for s, y, rho in reversed(known):
            alphas.append(rho * np.einsum("bk,bk->b", s, gradient))
            gradient = gradient - alphas[-1][:, None] * y
        result = factors.solved(gradient, None if self.left_out is None else self.left_out[rows])
        for s, y, rho in known:
            result += (alphas.pop() - rho * np.einsum("bk,bk->b", y, result))[:, None] * s
        return result

    def moved(self, better: np.ndarray, theta: FloatArray, value: FloatArray, slope: FloatArray) -> None:
        """To where it is better; elsewhere what was known of the past is forgotten."""
        step, change, rho = np.zeros_like(self.theta), np.zeros_like(self.slope), np.zeros(len(better))
        step[better], change[better] = theta - self.theta[better], slope - self.slope[better]
        product, square = np.einsum("bk,bk->b", step, change), np.einsum("bk,bk->b", change, change)
        known = product > 1e-12 * square
        rho[known] = 1 / product[known]
        for old in self.weights:
            old[~better] = 0.0
        self.theta[better], self.value[better], self.slope[better] = theta, value, slope
        for past, new in ((self.steps, step), (self.changes, change), (self.weights, rho)):
            past.append(new)
            del past[:-_MEMORY]
