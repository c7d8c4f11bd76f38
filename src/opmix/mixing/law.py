r"""The mixing law: loss_e(p) = c_e + exp(t_e . p), one per evaluation set (method.md section 3, step 4).

Fitted on *mixture* coordinates. A design whose mixtures lie in a subspace (old and new data on a line) is the
normal case: exponents live in the span of the design and `t` is the minimum-norm representative, so it
predicts exactly where the design can tell and says nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from opmix.errors import LawError
from opmix.mixing.curvature import CurvatureForm
from opmix.mixing.least_squares import Parameters, evaluate, fit_batch, huber
from opmix.mixing.log_linear import LogLinearDraws, LogLinearLaw
from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import distinct_rows, rank_correlation
from opmix.mixing.refits import ITERATIONS, TOLERANCE, refit
from opmix.protocols.law import LawQuality

RANK_TOLERANCE = 1e-5
"""Singular values of the mixtures below this share of the largest count as zero."""

_MANY = 100
"""Points above which refits of few exponents stop after a few steps."""
_WIDE = 32
"""Exponents above which refits share the fit's matrix (`opmix.mixing.refits`)."""

_TOGETHER = 4096
"""Refits solved in one batch."""
_GO_ON = 2
"""Starts that go on where a step is dear."""
_POLISH, _POLISHED = 12, 1e-9
"""Times at most that a start that went on is refitted with a matrix of its own; and the relative decrease at which that ends."""
_CROWD = 1000
"""Points above which a left-one-out refit takes two steps, however many exponents there are: one point in a thousand moves little."""

_START_OFFSETS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class LogLinearFit:
    """A law with everything needed to judge it and to draw from its posterior; see `LawFit`."""

    law: LogLinearLaw
    quality: tuple[LawQuality, ...]
    fitted: FloatArray  # (M, E) law at the points
    loo: FloatArray  # (M, E) each point predicted by the law fitted without it
    problem: LawProblem
    params: Parameters  # batch of E

    @cached_property
    def mixtures(self) -> FloatArray:
        """What the points stand for, (M, D)."""
        return self.problem.Z @ self.problem.basis.T

    @property
    def losses(self) -> FloatArray:
        """Observed at the points, (M, E)."""
        return self.problem.losses

    @property
    def residuals(self) -> FloatArray:
        """Observed minus left-one-out prediction, (M, E)."""
        return self.problem.losses - self.loo

    @property
    def misfit(self) -> FloatArray:
        """What a prediction at a new mixture is off by: the left-one-out residuals, (M, E)."""
        return self.residuals

    @property
    def interference(self) -> FloatArray | None:
        """Nats per unit of interference, (E,); None where the law has no such term."""
        return None if self.problem.v is None else self.law.gamma

    @property
    def rank(self) -> int:
        """Exponents that the design can tell apart."""
        return self.law.rank

    @property
    def settings(self) -> dict[str, Any]:
        """See `LawFit`."""
        return {"huber_delta": self.problem.delta}

    def most(self, objective: Callable[[FloatArray], FloatArray]) -> float:
        """What the points themselves differ by."""
        return float(np.ptp(objective(self.losses)))

    def exact(self) -> LogLinearFit:
        """See `LawFit`."""
        return replace(self, loo=self.problem.losses)

    def _refitted(self, losses: FloatArray) -> Parameters:
        """The law of every draw's losses (B, M, E), as a batch of B x E."""
        draws, points, metrics = losses.shape
        if self.problem.large:
            parts = [self.problem.refit(losses[:, :, e], self.params.take(np.array([e]))) for e in range(metrics)]
            fields = ([getattr(part, name) for part in parts] for name in ("c", "z", "gamma"))
            return Parameters(*(np.stack(f, axis=1).reshape(draws * metrics, *f[0].shape[1:]) for f in fields))
        Y = losses.transpose(0, 2, 1).reshape(draws * metrics, points)
        mine = (self.params.c, self.params.z, self.params.gamma)
        start = Parameters(*(np.tile(a, (draws,) + (1,) * (a.ndim - 1)) for a in mine))
        return self.problem.solve(Y, start, max_iterations=10 if points > _MANY else 40)[0]

    def draws(self, *, num_draws: int = 200, seed: int = 0, noise: FloatArray | None = None) -> LogLinearDraws:
        """Draw laws by a wild bootstrap.

        Each draw adds to the fitted losses the *left-one-out* residuals times one standard normal per point (the same for
        all evaluation sets, so their correlation stays), plus, where held-out sequences are known, the change from drawing
        other sequences (the same for all points, because evaluation is paired); then everything is refitted. Compared with
        the alternatives: resampling rows breaks the small designs that are normal here (nine points on a line); a Laplace
        approximation misjudges the curved valley between `c` and `t`, which matters because `c` is weakly identified;
        left-one-out residuals carry the misfit of the law and the degrees of freedom it used up.

        Args:
            num_draws: B.
            seed: Of the normal multipliers.
            noise: Evaluation noise, (B, M, E) in nats: losses on resampled sequences minus losses.
        """
        points, num_metrics = self.fitted.shape
        multipliers = np.random.default_rng(seed).standard_normal((num_draws, points))
        losses = self.fitted + multipliers[:, :, None] * self.residuals
        if noise is not None:
            losses = losses + noise
        params = self._refitted(losses)
        return LogLinearDraws(
            self.law.metrics,
            self.law.domains,
            params.c.reshape(num_draws, num_metrics),
            (params.z @ self.problem.basis.T).reshape(num_draws, num_metrics, -1),
            params.gamma.reshape(num_draws, num_metrics),
            self.law.rank,
            10 * self.problem.losses.max(axis=0),
        )


@dataclass(frozen=True)
class LawProblem:
    """A table of points in the form the fit wants."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    losses: FloatArray  # (M, E)
    Z: FloatArray  # (M, K) mixtures in the design's own span
    basis: FloatArray  # (D, K); t = basis z
    v: FloatArray | None  # (M,) interference
    delta: float

    def solve(
        self, Y: FloatArray, start: Parameters, *, weights: FloatArray | None = None, max_iterations: int = 60
    ) -> tuple[Parameters, FloatArray]:
        """Fit B laws to losses (B, M)."""
        # 0 <= c keeps losses positive; c below every loss but the noise is all that exp > 0 allows.
        span = (np.zeros(len(Y)), np.maximum(Y.mean(axis=1), 0.0))
        return fit_batch(
            self.Z, Y, start, v=self.v, weights=weights, delta=self.delta, c_bounds=span, max_iterations=max_iterations
        )

    @property
    def large(self) -> bool:
        """Whether a matrix for every refit costs more than the refits themselves."""
        return len(self.Z) > _MANY and self.Z.shape[1] > _WIDE

    def refit(
        self, Y: FloatArray, at: Parameters, left_out: np.ndarray | None = None, *, tolerance: float = TOLERANCE
    ) -> Parameters:
        """Fit B laws to losses (B, M) near one that is fitted; or to the same (1, M), each without the point that it leaves out, (B,)."""
        highest = np.maximum(Y.mean(axis=1), 0.0)
        form = CurvatureForm.near(self.Z, self.v, self.basis.sum(axis=0), at)
        if left_out is None:
            return refit(form, Y, at, delta=self.delta, highest=highest, tolerance=tolerance)
        steps = ITERATIONS if len(self.Z) <= _CROWD else 2
        highest = np.repeat(highest, len(left_out))
        return refit(form, Y, at, left_out=left_out, delta=self.delta, highest=highest, iterations=steps)

    def predict(self, params: Parameters) -> FloatArray:
        """Losses at the points under B parameters, (B, M)."""
        return evaluate(self.Z, self.v, params)[0]

    def predict_each(self, params: Parameters) -> FloatArray:
        """Loss at each point under parameters of its own, a batch of M, (M,)."""
        losses: FloatArray = params.c + np.exp(np.clip(np.einsum("mk,mk->m", self.Z, params.z), -60.0, 60.0))
        return losses if self.v is None else losses + params.gamma * self.v

    def law(self, params: Parameters) -> LogLinearLaw:
        """A batch of E parameters as a law over domains."""
        t = params.z @ self.basis.T
        return LogLinearLaw(self.metrics, self.domains, params.c, t, params.gamma, self.Z.shape[1])


def fit_law(
    mixtures: FloatArray,
    losses: FloatArray,
    *,
    domains: Sequence[str],
    metrics: Sequence[str],
    interference: FloatArray | None = None,
    delta: float = 0.02,
) -> LogLinearFit:
    r"""Fit one log-linear law per evaluation set by Huber regression.

    Deterministic: several starts from log-linear regressions at different `c`, all polished together in one
    batched Levenberg-Marquardt in float64 with analytic derivatives; the best objective wins.

    Args:
        mixtures: Shares per domain, (M, D), rows on the simplex.
        losses: Held-out losses in nats per token, (M, E).
        domains: D names.
        metrics: E names.
        interference: Of each point, (M,), >= 0; adds a term `gamma_e v` to the fit that predictions leave out.
        delta: Huber threshold in nats (paper's code: 0.02).

    Returns:
        The law with in-sample and leave-one-out quality.

    Raises:
        LawError: Too few distinct points for the design's rank, non-finite numbers, a loss that never changes.

    Examples:
        >>> p = np.linspace(0.1, 0.9, 9)
        >>> mixtures = np.stack([1 - p, p], axis=1)
        >>> losses = (2.0 + np.exp(mixtures @ [-0.5, 0.4]))[:, None]
        >>> fit = fit_law(mixtures, losses, domains=("old", "new"), metrics=("web",))
        >>> bool(abs(fit.law.predict(np.array([[0.5, 0.5]]))[0, 0] - (2 + np.exp(-0.05))) < 1e-6)
        True

    References:
        arXiv 2605.15220 (OP-Mix); the law is Ye et al., arXiv 2403.16952, and Olmix's fit, arXiv 2602.12237.
    """
    problem = _problem(mixtures, losses, tuple(domains), tuple(metrics), interference, delta)
    params = _multi_start(problem)
    fitted = problem.predict(params)
    loo = _leave_one_out(problem, params)
    quality = tuple(
        LawQuality(
            huber=float(huber(losses[:, e] - fitted[e], delta).mean()),
            rmse=float(np.sqrt(np.mean((losses[:, e] - fitted[e]) ** 2))),
            loo_rmse=float(np.sqrt(np.mean((losses[:, e] - loo[:, e]) ** 2))),
            spearman=rank_correlation(fitted[e], losses[:, e]),
            loo_spearman=rank_correlation(loo[:, e], losses[:, e]),
        )
        for e in range(losses.shape[1])
    )
    return LogLinearFit(problem.law(params), quality, fitted.T, loo, problem, params)


def fit_flops(points: int, exponents: int, metrics: int, draws: int) -> float:
    """About how many operations `fit_law` and its draws take, for estimates before long work."""
    own = points * (exponents**2 + 100.0) * 2  # one step with a matrix of its own; 100: what a point costs besides
    if points > _MANY and exponents > _WIDE:
        shared = (4 if points > _CROWD else 10) * points + 8 * draws
        return metrics * (3 * own + points * (shared * exponents + 4000.0 * (points + draws)))
    few, some = (2, 10) if points > _MANY else (40, 40)
    return metrics * own * (len(_START_OFFSETS) * 200 + points * few + draws * some)


def _problem(
    mixtures: FloatArray,
    losses: FloatArray,
    domains: tuple[str, ...],
    metrics: tuple[str, ...],
    interference: FloatArray | None,
    delta: float,
) -> LawProblem:
    mixtures, losses = np.asarray(mixtures, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if mixtures.shape != (len(losses), len(domains)) or losses.shape[1:] != (len(metrics),):
        raise LawError(
            f"mixtures {mixtures.shape} and losses {losses.shape} do not fit {len(domains)} domains and "
            f"{len(metrics)} metrics; expected (M, D) and (M, E)"
        )
    if not len(losses):
        raise LawError("no points; a law needs runs that ended")
    for label, table, names in (("mixture", mixtures, domains), ("loss", losses, metrics)):
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            row, column = bad[0]
            raise LawError(
                f"point {row}: {label} {names[column]!r} is {table[row, column]}; expected finite numbers "
                f"(remove the run or find out why it diverged)"
            )
    _, singular, directions = np.linalg.svd(mixtures, full_matrices=False)
    rank = int(np.sum(singular > RANK_TOLERANCE * singular[0]))
    distinct = distinct_rows(mixtures)
    needed = rank + 2 + (interference is not None)
    if rank < 2:
        raise LawError(f"all {len(mixtures)} points have the same mixture; a law needs at least two different ones")
    if distinct < rank + 1 or len(mixtures) < needed:
        raise LawError(
            f"{distinct} different mixtures ({len(mixtures)} points) for a law with {rank} exponents and a "
            f"constant; expected at least {needed} points (better {2 * rank + 2}): add proxies or drop domains"
        )
    flat = [m for m, column in zip(metrics, losses.T, strict=True) if np.ptp(column) < 1e-12]
    if flat:
        raise LawError(f"metric {flat[0]!r} has the same loss at every point; no law can be fitted to it, leave it out")
    basis = directions[:rank].T
    return LawProblem(metrics, domains, losses, mixtures @ basis, basis, interference, delta)


def _multi_start(problem: LawProblem) -> Parameters:
    """Best of several deterministic starts per evaluation set."""
    losses, Z = problem.losses, problem.Z
    lowest, spread = losses.min(axis=0), np.ptp(losses, axis=0)
    constants: list[FloatArray] = []
    exponents: list[FloatArray] = []
    for offset in _START_OFFSETS:
        c = np.maximum(lowest - offset * spread, 0.0)
        for e in range(losses.shape[1]):
            if constants and c[e] == constants[-1][e]:  # both at zero: the same start
                exponents.append(exponents[-losses.shape[1]])
                continue
            above = np.maximum(losses[:, e] - c[e], 1e-3 * spread[e])
            # weights: an error in log(y - c) is worth (y - c) times as much in y
            exponents.append(_regressed(Z * above[:, None], np.log(above) * above, problem.large))
        constants.append(c)
    num_starts, num_metrics = len(_START_OFFSETS), losses.shape[1]
    params = Parameters(np.concatenate(constants), np.array(exponents), np.zeros(num_starts * num_metrics))
    if problem.large:
        params, objective = problem.solve(np.tile(losses.T, (num_starts, 1)), params, max_iterations=0)
        return _polished(problem, _best(problem, params, objective, _GO_ON))
    params, objective = problem.solve(np.tile(losses.T, (num_starts, 1)), params, max_iterations=200)
    return _best(problem, params, objective, 1)


def _polished(problem: LawProblem, starts: Parameters) -> Parameters:
    """Of a large table: every evaluation set's starts, and the best of them refitted near itself until nothing is gained."""
    found = []
    for e, y in enumerate(problem.losses.T):
        each = [starts.take(np.array([i])) for i in range(e, len(starts.c), len(problem.metrics))]
        tried = [_near(problem, y, start) for start in each]
        value, law = min(tried, key=lambda t: t[0])
        for _ in range(_POLISH):
            before, (value, law) = value, _near(problem, y, law)
            if not value < (1 - _POLISHED) * before:
                break
        found.append(law)
    return Parameters(*(np.concatenate([getattr(law, name) for law in found]) for name in ("c", "z", "gamma")))


def _near(problem: LawProblem, losses: FloatArray, at: Parameters) -> tuple[float, Parameters]:
    """A law refitted near itself, and its objective."""
    law = problem.refit(losses[None], at, tolerance=_POLISHED)
    return float(huber(losses - problem.predict(law)[0], problem.delta).sum()), law


def _regressed(A: FloatArray, y: FloatArray, large: bool) -> FloatArray:
    """Least squares; of a large table by the normal equations, a start needs no more."""
    if not large:
        return np.asarray(np.linalg.lstsq(A, y, rcond=None)[0], dtype=np.float64)
    normal = A.T @ A
    normal[np.diag_indices_from(normal)] += 1e-10 * np.diag(normal).max()
    return np.asarray(np.linalg.solve(normal, A.T @ y), dtype=np.float64)


def _best(problem: LawProblem, params: Parameters, objective: FloatArray, num: int) -> Parameters:
    """The `num` best of several starts of every evaluation set."""
    num_metrics = len(problem.metrics)
    found = np.where(np.isfinite(objective), objective, np.inf).reshape(-1, num_metrics)
    if not np.all(np.isfinite(found.min(axis=0))):
        failed = problem.metrics[int(np.argmax(found.min(axis=0)))]
        raise LawError(f"metric {failed!r}: no start converged; look at its losses for outliers or wrong units")
    best = np.argsort(found, axis=0, kind="stable")[:num]
    return params.take((best * num_metrics + np.arange(num_metrics)).ravel())


def _leave_one_out(problem: LawProblem, params: Parameters) -> FloatArray:
    """Every point predicted by the law refitted without it, (M, E); warm-started refits.

    Up to 100 points the refits run to convergence, and where there are many exponents. Else one point moves little and two steps do: on
    RegMix's 512 runs, whose residuals sit far out in Huber's linear part, that is 2-5 % below the converged error.
    """
    points, num_metrics = problem.losses.shape
    loo, nobody = np.empty_like(problem.losses), np.arange(points)
    together = 1 if problem.large else max(1, _TOGETHER // points)
    for first in range(0, num_metrics, together):
        some = np.arange(first, min(first + together, num_metrics))
        if problem.large:
            refits = problem.refit(problem.losses[:, some].T, params.take(some), nobody)
            loo[:, first] = problem.predict_each(refits)
        else:
            losses = np.repeat(problem.losses[:, some].T, points, axis=0)
            start = params.take(np.repeat(some, points))
            weights, steps = np.tile(1.0 - np.eye(points), (len(some), 1)), 2 if points > _MANY else 40
            refits, _ = problem.solve(losses, start, weights=weights, max_iterations=steps)
            told = problem.predict(refits).reshape(len(some), points, points)
            loo[:, some] = np.diagonal(told, axis1=1, axis2=2).T
    # Far from the points that are left a law may run away; past ten times the largest loss it only says "far worse".
    return np.minimum(loo, 10 * problem.losses.max(axis=0))
