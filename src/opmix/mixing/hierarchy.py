r"""Numerics of the law in effective tokens: hierarchical over evaluation sets, hyper-parameters by marginal likelihood.

Parameters of evaluation set e: `base`, `log b`, `level` and `log s_d`, with `worth_d = exp(level + log s_d)`. For a set with
training data of its own, `log s_own = 0` and the other domains' are pooled; for a target all are. Normal priors on `log b`,
`level`, `log s`; their means and spreads, the noise, and `rho` maximise the Laplace approximation of the marginal likelihood by
EM, over all evaluation sets at once. Starts, values of `rho`, leave-one-out refits and draws run in one batched
Levenberg-Marquardt with an analytic Jacobian. Shape letters: B problems, M points, K parameters, S values of `rho`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray

RHO = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LEVELS = (-1.0, 1.0, 3.0, 5.0)
_ROUNDS, _SETTLED = 25, 0.005
"""Rounds of EM at most; and the change of a prior mean, or of a logarithm of a spread or noise, at which they end."""
_IN_CACHE = 2**16
"""Numbers of one Jacobian, or of those of several problems, that are worked on at once."""
_PINNED = 1e-4
"""Spread of the prior of a parameter that is not free."""
_FLAT = 1e3
_MEAN = (-2.5, 2.0, -4.0, -2.0)
_SPREAD = (1.0, 1.5, 1.5, 1.5)
_NOISE, _NOISE_STRENGTH = 0.02, 4.0
"""Noise expected of a probe, of what mixtures make of a difference; and the points that this is worth."""
_STRENGTH = 2.0
"""Evaluation sets that the hyper-priors are worth: a few sets must not shrink a spread to nothing."""


@dataclass(frozen=True)
class Points:
    """What is fitted: M looks at P probes, E evaluation sets, D domains."""

    x: FloatArray  # (M, D) tokens of each domain, in units of the longest probe
    y: FloatArray  # (M, E) losses, nats
    probe: npt.NDArray[np.intp]  # (M,) of which probe; looks at one probe share its noise
    own: npt.NDArray[np.intp]  # (E,) domain that is the evaluation set's own; -1: a target
    known: FloatArray  # (E,) noise known beforehand (held-out text, seeds), nats; the fitted one is never less


@dataclass(frozen=True)
class Hyper:
    """Priors and noise of S settings (one a value of `rho`)."""

    mean: FloatArray  # (S, 4): log b, level, log s of a training domain's set, log s of a target
    spread: FloatArray  # (S, 4)
    noise: FloatArray  # (S, E) nats

    def take(self, index: Any) -> Hyper:
        """Some of the settings."""
        return Hyper(self.mean[index], self.spread[index], self.noise[index])

    def away(self, other: Hyper) -> float:
        """Largest difference of a mean, or of the logarithm of a spread or noise."""
        ratios = [np.log(self.spread / other.spread), np.log(self.noise / other.noise)]
        return float(max(np.abs(part).max() for part in (self.mean - other.mean, *ratios)))


@dataclass(frozen=True)
class Batch:
    """B problems: each has losses, a `rho`, priors (mean and spread per parameter), noise per point."""

    powers: FloatArray  # (S, M, D) x^rho, by value of rho
    setting: npt.NDArray[np.intp]  # (B,) which of them
    y: FloatArray  # (B, M)
    scale: FloatArray  # (B, M) noise; inf leaves a point out
    mean: FloatArray  # (B, K)
    spread: FloatArray  # (B, K)

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Batch:
        """Some of the problems."""
        rows = (row[index] for row in (self.y, self.scale, self.mean, self.spread))
        return Batch(self.powers, self.setting[index], *rows)

    def pieces(self) -> list[slice]:
        """The problems, so few at once that their Jacobians stay in a processor's cache."""
        size = max(1, _IN_CACHE // (self.powers.shape[1] * self.mean.shape[1]))
        return [slice(i, i + size) for i in range(0, len(self.y), size)]

    def evaluate(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Predictions (B, M) and their Jacobian (B, M, K); theta (B, K): base, log b, level, log s."""
        b = np.exp(theta[:, 1])[:, None]
        worth = np.exp(np.clip(theta[:, 2:3] + theta[:, 3:], -40.0, 20.0))
        power = self.powers[self.setting]
        gained = (power @ worth[:, :, None])[:, :, 0]
        rise = b * np.log1p(gained)
        jacobian = np.empty((*rise.shape, theta.shape[1]))
        jacobian[:, :, 0] = 1.0
        jacobian[:, :, 1] = -rise
        slope = -b / (1 + gained)
        jacobian[:, :, 2] = slope * gained
        np.multiply(power, worth[:, None, :], out=jacobian[:, :, 3:])
        jacobian[:, :, 3:] *= slope[:, :, None]
        return theta[:, :1] - rise, jacobian

    def cost(self, theta: FloatArray, predicted: FloatArray) -> FloatArray:
        """Half the squared, scaled residuals of data and priors, (B,)."""
        data = ((self.y - predicted) / self.scale) ** 2
        return 0.5 * (data.sum(axis=1) + (((theta - self.mean) / self.spread) ** 2).sum(axis=1))

    def curvature(self, jacobian: FloatArray) -> FloatArray:
        """Gauss-Newton Hessian of the cost, (B, K, K)."""
        weighted = jacobian / self.scale[:, :, None] ** 2
        normal = np.swapaxes(weighted, 1, 2) @ jacobian
        normal[:, np.arange(normal.shape[1]), np.arange(normal.shape[1])] += self.spread**-2.0
        return normal


def minimise(
    batch: Batch, theta: FloatArray, *, iterations: int = 60, tolerance: float = 1e-9
) -> tuple[FloatArray, FloatArray]:
    """Levenberg-Marquardt on every problem at once; returns parameters (B, K) and cost (B,).

    A problem is done where a step lowers its cost, in units of log likelihood, by less than `tolerance * (1 + cost)`. Worths
    enter as exponentials, so their second derivative is their first: without it their steps converge only linearly. Problems know
    nothing of each other: many are done piece by piece, so that memory does not grow with them.
    """
    if len(cuts := batch.pieces()) > 1:
        parts = [minimise(batch.take(c), theta[c], iterations=iterations, tolerance=tolerance) for c in cuts]
        return np.concatenate([t for t, _ in parts]), np.concatenate([c for _, c in parts])
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)
    predicted, jacobian = batch.evaluate(theta)
    cost, active = batch.cost(theta, predicted), np.arange(len(theta))
    part, every = batch, np.arange(theta.shape[1])
    for _ in range(iterations):
        here, told, slope = theta[active], predicted[active], jacobian[active]
        normal = part.curvature(slope)
        pull = (((part.y - told) / part.scale**2)[:, None, :] @ slope)[:, 0]
        normal[:, every[3:], every[3:]] += np.maximum(-pull, -0.7 / part.spread**2)[:, 3:]  # kept positive definite
        pull += (part.mean - here) / part.spread**2
        normal[:, every, every] *= 1 + damping[active][:, None]
        trial = here + np.clip(np.linalg.solve(normal, pull[..., None])[..., 0], -3.0, 3.0)
        there, slope = part.evaluate(trial)
        value = part.cost(trial, there)
        gain = cost[active] - value
        better = gain >= 0
        took = active[better]
        theta[took], predicted[took], jacobian[took] = trial[better], there[better], slope[better]
        cost[took] = value[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-9), damping[active] * 10)
        going = ~(better & (gain <= tolerance * (1 + value))) & (damping[active] < 1e10)
        if not going.any():
            break
        if not going.all():
            active, part = active[going], part.take(going)
    return theta, cost


def batch_of(points: Points, hyper: Hyper, rho: FloatArray, which: npt.NDArray[np.intp]) -> Batch:
    """One problem for each (setting, evaluation set) in the rows of `which`, (B, 2)."""
    s, e = which.T
    D = points.x.shape[1]
    own = points.own[e]
    other = 2 + (own < 0)
    flat = np.stack([points.y.mean(axis=0)[e], np.full(len(s), _FLAT)])
    priors = [
        np.concatenate([flat[i][:, None], told[s, :2], np.repeat(told[s, other][:, None], D, axis=1)], axis=1)
        for i, told in enumerate((hyper.mean, hyper.spread))
    ]
    has = np.flatnonzero(own >= 0)
    priors[0][has, 3 + own[has]], priors[1][has, 3 + own[has]] = 0.0, _PINNED
    scale = np.repeat(hyper.noise[s, e][:, None], len(points.x), axis=1)
    return Batch(points.x[None] ** rho[:, None, None], s, points.y.T[e], scale, *priors)


@dataclass(frozen=True)
class Hierarchy:
    """Best parameters of every evaluation set at each of S values of `rho`, with the priors found there."""

    rho: FloatArray  # (S,)
    theta: FloatArray  # (S, E, K): base, log b, level, log s
    hyper: Hyper
    evidence: FloatArray  # (S,) log marginal likelihood (Laplace), up to a constant

    @property
    def best(self) -> int:
        """Where the evidence is largest."""
        return int(self.evidence.argmax())

    @property
    def weights(self) -> FloatArray:
        """Posterior of `rho`, (S,)."""
        lifted = np.exp(self.evidence - self.evidence.max())
        return lifted / lifted.sum()


def fit_hierarchy(points: Points, rho: Sequence[float] = RHO) -> Hierarchy:
    """Fit every evaluation set at every `rho`, with the priors and the noise that the marginal likelihood likes best."""
    E, S = points.y.shape[1], len(rho)
    exponents = np.asarray(rho, dtype=np.float64)
    size = np.maximum(np.ptp(points.y, axis=0), 1e-9)
    start = np.array([np.log(np.median(size) / 2), *_MEAN[1:]])
    noise = np.maximum(0.05 * size, points.known)
    hyper = Hyper(np.tile(start, (S, 1)), np.tile(_SPREAD, (S, 1)), np.tile(noise, (S, 1)))
    which = np.array([(s, e) for s in range(S) for e in range(E)])
    theta = _started(points, hyper, exponents, which)
    for _ in range(_ROUNDS):
        batch = batch_of(points, hyper, exponents, which)
        theta, _ = minimise(batch, theta, iterations=4, tolerance=1e-6)
        before, hyper = hyper, _improved(points, hyper, batch, theta, start)
        if hyper.away(before) < _SETTLED:
            break
    batch = batch_of(points, hyper, exponents, which)
    theta, cost = minimise(batch, theta)
    return Hierarchy(exponents, theta.reshape(S, E, -1), hyper, _evidence(points, hyper, batch, theta, cost, start))


def _started(points: Points, hyper: Hyper, rho: FloatArray, which: npt.NDArray[np.intp]) -> FloatArray:
    """The best of several first levels for every problem."""
    batch = batch_of(points, hyper, rho, np.tile(which, (len(_LEVELS), 1)))
    theta = batch.mean.copy()
    theta[:, 0] = np.tile(points.y.max(axis=0)[which[:, 1]], len(_LEVELS))
    theta[:, 2] = np.repeat(_LEVELS, len(which))
    theta, cost = minimise(batch, theta, iterations=12, tolerance=1e-3)
    best = cost.reshape(len(_LEVELS), -1).argmin(axis=0) * len(which) + np.arange(len(which))
    return minimise(batch.take(best), theta[best], iterations=30, tolerance=1e-6)[0]


def _improved(points: Points, hyper: Hyper, batch: Batch, theta: FloatArray, start: FloatArray) -> Hyper:
    """One step of EM: expected squares of parameters and of residuals under the Laplace approximation."""
    M, E = points.y.shape
    parts = [_unsure(batch.take(cut), theta[cut]) for cut in batch.pieces()]
    predicted, variance, lost = (np.concatenate(column) for column in zip(*parts, strict=True))
    values = theta.reshape(-1, E, theta.shape[1])
    variance = variance.reshape(values.shape)
    mean, spread = hyper.mean.copy(), hyper.spread.copy()
    for group, chosen in enumerate(_groups(points)):
        told, unsure, count = values[:, chosen], variance[:, chosen], chosen.sum() + _STRENGTH
        center = (told.sum(axis=1) + _STRENGTH * start[group]) / count
        squares = ((told - center[:, None]) ** 2 + unsure).sum(axis=1)
        squares += _STRENGTH * (_SPREAD[group] ** 2 + (center - start[group]) ** 2)
        mean[:, group], spread[:, group] = center, np.sqrt(squares / count)
    squares = (((batch.y - predicted) ** 2).sum(axis=1) + lost).reshape(-1, E)
    size = np.maximum(np.ptp(points.y, axis=0), 1e-9)
    noise = np.sqrt((squares + _NOISE_STRENGTH * (_NOISE * size) ** 2) / (M + _NOISE_STRENGTH))
    return Hyper(mean, spread, np.maximum(noise, points.known))


def _unsure(batch: Batch, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Predictions (B, M), variances of parameters (B, K), and of all predictions together (B,), by the Laplace approximation."""
    predicted, jacobian = batch.evaluate(theta)
    covariance = np.linalg.inv(batch.curvature(jacobian))
    lost = ((jacobian @ covariance) * jacobian).sum(axis=(1, 2))
    return predicted, np.einsum("bkk->bk", covariance), lost


def _groups(points: Points) -> npt.NDArray[np.bool_]:
    """Which parameters share a prior: log b, level, log s of others for a domain's own set, log s for a target; (4, E, K)."""
    E, D = points.y.shape[1], points.x.shape[1]
    chosen = np.zeros((4, E, 3 + D), dtype=bool)
    chosen[0, :, 1] = chosen[1, :, 2] = True
    foreign = np.arange(D) != points.own[:, None]
    chosen[2, :, 3:] = foreign & (points.own >= 0)[:, None]
    chosen[3, :, 3:] = foreign & (points.own < 0)[:, None]
    return chosen


def _evidence(
    points: Points, hyper: Hyper, batch: Batch, theta: FloatArray, cost: FloatArray, start: FloatArray
) -> FloatArray:
    """Log marginal likelihood of each setting, hyper-priors included, up to a constant, (S,)."""
    parts = [(batch.take(cut), theta[cut]) for cut in batch.pieces()]
    log_volume = np.concatenate([np.linalg.slogdet(p.curvature(p.evaluate(t)[1]))[1] for p, t in parts])
    each = -cost - np.log(batch.scale).sum(axis=1) - np.log(batch.spread).sum(axis=1)
    each -= 0.5 * log_volume
    total = each.reshape(len(hyper.mean), -1).sum(axis=1)
    off = ((hyper.mean - start) / hyper.spread) ** 2 + (np.array(_SPREAD) / hyper.spread) ** 2
    total = total - 0.5 * _STRENGTH * (off + 2 * np.log(hyper.spread)).sum(axis=1)
    relative = hyper.noise / np.maximum(np.ptp(points.y, axis=0), 1e-9)
    return np.asarray(total - _NOISE_STRENGTH * (0.5 * (_NOISE / relative) ** 2 + np.log(relative)).sum(axis=1))
