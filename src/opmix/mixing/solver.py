r"""The convex problem: min_p objective(losses of a law at p) + lambda KL(p || q) under constraints.

Solved as a conic program by Clarabel (the law's own cones, exponential ones for the KL term), which knows infeasible
from difficult. No answer leaves without a certificate that does not depend on the solver: the Frank-Wolfe gap,
computed by HiGHS on the linearised problem, bounds how far the objective can be from its minimum.

The variables are *coordinates* x on a simplex; `p = E^T x` are domains. Where old data is one coordinate, its
inner proportions stay what they were, because no probe has varied them; the KL term lives on domains.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix.errors import ConfigError, InfeasibleError, SolverError
from opmix.mixing.conic import ATTEMPTS, ConicProgram, Goal, Objective
from opmix.mixing.constraints import Constraints, LinearRow
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.numerics import logsumexp, softmax
from opmix.protocols.law import MixingLaw

GAP_TOLERANCE = 1e-5
"""Largest certified distance from the optimum that is accepted, in nats (times the objective or the KL weight where they exceed 1)."""
VIOLATION_TOLERANCE = 1e-6
_SOLVED = ("Solved", "AlmostSolved")
_SMALL_SHARE = 1e-5
_ROUNDING = 1e-12
_TANGENT_FLOORS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)


@dataclass(frozen=True)
class Coordinates:
    """The directions a search can tell apart: each stands for a mixture of domains.

    Overlap is allowed: a domain may be inside `old` and a coordinate of its own.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    E: FloatArray  # (C, D), rows on the simplex

    @classmethod
    def identity(cls, domains: Sequence[str]) -> Coordinates:
        """Every domain is its own coordinate."""
        return cls(tuple(domains), tuple(domains), np.eye(len(domains)))

    def mixture(self, x: FloatArray) -> Mixture:
        """`p = E^T x`."""
        return Mixture(self.domains, np.maximum(self.E.T @ x, 0) / np.maximum(self.E.T @ x, 0).sum())


@dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """What is minimised.

    `mean`: the average loss over evaluation sets, less what no mixture changes (the paper's); `weighted`: with weights
    `omega` that add up to one; `worst_case`: the largest `loss_e - reference_e`; `perplexity`: the logarithm of the
    (weighted) mean perplexity, `log sum_e omega_e exp(loss_e)`, whose optimum is that of the mean perplexity itself.
    """

    objective: Objective = "mean"
    omega: FloatArray | None = None  # (E,)
    reference: FloatArray | None = None  # (E,) nats; worst_case only; None: zeros; infinite: never the worst
    kl: float = 0.05
    prior: Mixture | None = None  # None: uniform over domains

    def weights(self, num_metrics: int) -> FloatArray:
        """omega, normalised."""
        omega = np.ones(num_metrics) if self.omega is None or self.objective == "mean" else np.asarray(self.omega)
        if omega.shape != (num_metrics,) or np.any(omega < 0) or omega.sum() <= 0:
            raise ConfigError(f"objective weights {omega}; expected {num_metrics} numbers >= 0, at least one positive")
        return omega / omega.sum()


@dataclass(frozen=True)
class Solution:
    """An answer with the evidence that it is one."""

    mixture: Mixture
    coordinates: FloatArray  # (C,)
    objective: float
    gap: float
    max_violation: float
    status: str
    iterations: int
    seconds: float
    accepted_gap: float = GAP_TOLERANCE

    def accepted(self, *, certify: bool) -> bool:
        """Whether constraints hold and the certificate, or without one the solver itself, says that it is the optimum."""
        if self.max_violation > VIOLATION_TOLERANCE:
            return False
        if certify:
            return self.gap <= self.accepted_gap
        return self.status in _SOLVED


def solve(
    law: MixingLaw,
    *,
    coordinates: Coordinates | None = None,
    settings: SolveSettings | None = None,
    constraints: Constraints | None = None,
    certify: bool = True,
) -> Solution:
    r"""Solve `min_x  f(E^T x) + lambda KL(E^T x || q)` over the simplex and the constraints.

    Args:
        law: Fitted laws of E evaluation sets over D domains.
        coordinates: What can be varied; None: every domain on its own.
        settings: Objective, KL weight and prior. The default is the paper's: mean, 0.05, uniform.
        constraints: Linear constraints on domains and limits on predicted losses.
        certify: Compute the optimality certificate; bootstrap draws go without.

    Raises:
        InfeasibleError: Names constraints that contradict each other (an irreducible set).
        SolverError: The solver failed, or its answer does not pass the certificate.

    Examples:
        A linear loss has the closed form q exp(-a / lambda):

        >>> from opmix.mixing.log_linear import LogLinearLaw
        >>> law = LogLinearLaw(("m",), ("a", "b"), np.zeros(1), np.array([[0.001, 0.0]]), np.zeros(1), 2)
        >>> answer = solve(law, settings=SolveSettings(kl=0.001))
        >>> round(answer.mixture["a"], 3), round(float(1 / (1 + np.exp(1.0))), 3)
        (0.269, 0.269)
    """
    started = time.perf_counter()
    problem = _Problem.build(law, coordinates, settings or SolveSettings(), constraints or Constraints())
    if conflicts := contradicting_bounds(problem.rows, len(problem.coordinates.domains)):
        raise InfeasibleError(conflicts)
    found: list[Solution] = []
    for options in ATTEMPTS:
        x, status, iterations = problem.conic(options)
        gap = float("nan")
        if certify:
            x, gap = problem.refine_small_shares(x)
        p = problem.E.T @ x
        objective, violation = problem.value(p), problem.violation(p)
        mixture, seconds = problem.coordinates.mixture(x), time.perf_counter() - started
        accepted = GAP_TOLERANCE * max(1.0, abs(objective), problem.settings.kl)
        found.append(Solution(mixture, x, objective, gap, violation, status, iterations, seconds, accepted))
        if found[-1].accepted(certify=certify):
            return found[-1]
    best = min(found, key=lambda s: max(s.gap if certify else 0.0, s.max_violation))
    raise SolverError(
        f"the solver's answer ({best.status}) is not certified: optimality gap {best.gap:.2e} "
        f"(accepted {best.accepted_gap:.0e}), worst constraint violation "
        f"{best.max_violation:.2e} (accepted {VIOLATION_TOLERANCE:.0e}); check the law for extreme exponents "
        "or loosen near-contradictory constraints"
    )


def contradicting_bounds(rows: Sequence[LinearRow], num_domains: int) -> list[str]:
    """Bounds of single domains that no mixture meets, as sentences; told without a solver.

    A solver's answer at the edge depends on the law: it would call floors of 1 and 1e-9 feasible before a search and not after it.
    """
    lower, upper = np.zeros(num_domains), np.ones(num_domains)
    by: dict[tuple[str, int], str] = {}
    for r in rows:
        places = [int(d) for d in np.flatnonzero(r.row)]
        if len(places) == 1:
            (d,) = places
            if r.row[d] < 0 and r.bound / r.row[d] > lower[d]:
                lower[d], by["lower", d] = r.bound / r.row[d], r.label
            elif r.row[d] > 0 and r.bound / r.row[d] < upper[d]:
                upper[d], by["upper", d] = r.bound / r.row[d], r.label
    if crossed := [int(d) for d in np.flatnonzero(lower > upper + _ROUNDING)]:
        d = crossed[0]
        return list(dict.fromkeys(by[side, d] for side in ("lower", "upper") if (side, d) in by))
    for side, wrong in (("lower", lower.sum() > 1 + _ROUNDING), ("upper", upper.sum() < 1 - _ROUNDING)):
        if wrong:
            return [*(label for (kind, _), label in by.items() if kind == side), "shares add up to 1"]
    return []


@dataclass(frozen=True)
class _Problem:
    law: MixingLaw
    coordinates: Coordinates
    settings: SolveSettings
    constraints: Constraints
    rows: tuple[LinearRow, ...]
    q: FloatArray  # (D,)
    omega: FloatArray

    @property
    def E(self) -> FloatArray:  # noqa: N802  (the matrix of the docstring)
        return self.coordinates.E

    @classmethod
    def build(
        cls,
        law: MixingLaw,
        coordinates: Coordinates | None,
        settings: SolveSettings,
        constraints: Constraints,
    ) -> _Problem:
        coordinates = coordinates or Coordinates.identity(law.domains)
        if coordinates.domains != law.domains:
            raise ConfigError(
                f"coordinates are over {coordinates.domains}, the law over {law.domains}; expected the same"
            )
        if not (np.isfinite(settings.kl) and settings.kl >= 0):
            raise ConfigError(f"kl: {settings.kl}; expected a number >= 0")
        constraints.check(law.domains, law.metrics)
        prior = settings.prior if settings.prior is not None else Mixture.uniform(law.domains)
        q = prior.on(law.domains).weights
        if settings.kl > 0 and np.any(q == 0):
            # KL is infinite where the prior has no mass: say so as a constraint rather than diverge.
            empty = {d: 0.0 for d, mass in zip(law.domains, q, strict=True) if mass == 0}
            constraints = replace(constraints, fixed={**empty, **constraints.fixed})
        rows = tuple(constraints.rows(law.domains))
        return cls(law, coordinates, settings, constraints, rows, q, settings.weights(len(law.metrics)))

    # -- the objective, exactly --------------------------------------------------------------------------------

    def _reference(self) -> FloatArray:
        reference = self.settings.reference
        return np.zeros(len(self.law.metrics)) if reference is None else np.asarray(reference, dtype=np.float64)

    def _worst_gaps(self, p: FloatArray) -> FloatArray:
        return self.law.predict(p[None])[0] - self._reference()

    def value(self, p: FloatArray) -> float:
        """Objective at a mixture (D,)."""
        used = p > 0
        kl = float(np.sum(p[used] * np.log(p[used] / np.maximum(self.q[used], 1e-300)))) if self.settings.kl else 0.0
        if self.settings.objective == "worst_case":
            return float(self._worst_gaps(p).max()) + self.settings.kl * kl
        if self.settings.objective == "perplexity":
            return float(logsumexp(self.law.predict(p[None])[0], self.omega)) + self.settings.kl * kl
        return float(self.omega @ self.law.varying(p[None])[0]) + self.settings.kl * kl

    def violation(self, p: FloatArray) -> float:
        worst = max((float(r.row @ p - r.bound) for r in self.rows), default=0.0)
        losses = dict(zip(self.law.metrics, self.law.predict(p[None])[0], strict=True))
        return max([worst, 0.0, *(losses[m] - limit for m, limit in self.constraints.max_loss.items())])

    # -- the certificate ---------------------------------------------------------------------------------------

    def frank_wolfe_gap(self, p: FloatArray, objective: float, *, steepened: bool = False) -> float:
        """Upper bound on `objective - minimum`, whatever solver found p.

        Every convex function lies above its tangent, so minimising the tangents of objective and loss limits over
        the linear constraints (an LP) gives a lower bound on the minimum.

        Args:
            p: Mixture (D,).
            objective: Its value there.
            steepened: Limits of losses that hardly change with the mixture are scaled until they do: what the LP lets them be missed
                by is many shares otherwise.
        """
        C = self.E.shape[0]
        worst = self.settings.objective == "worst_case"
        slope = self._kl_slope(p) if worst else self.slope(p)
        A = [np.append(self.E @ r.row, 0.0) for r in self.rows]
        b = [r.bound + 1e-12 for r in self.rows]
        gradient, predicted = self.law.gradient(p), self.law.predict(p[None])[0]
        for metric, limit in self.constraints.max_loss.items():
            e = self.law.metrics.index(metric)
            row = self.E @ gradient[e]
            scale = 1 / np.ptp(row) if steepened and 0 < np.ptp(row) < 1 else 1.0
            A.append(np.append(scale * row, 0.0))
            b.append(scale * (limit - predicted[e] + gradient[e] @ p) + 1e-9)
        gaps = self._worst_gaps(p)
        if worst:  # epigraph variable tau: tangent of every loss stays below it
            for e in (e for e in range(len(gaps)) if np.isfinite(gaps[e])):
                A.append(np.append(self.E @ gradient[e], -1.0))
                b.append(float(gradient[e] @ p - gaps[e]))
        if not A:  # over the simplex a plane is lowest in a corner
            return max(0.0, float(slope @ p - (self.E @ slope).min()))
        from scipy.optimize import linprog  # a tenth of a second or more

        result = linprog(
            np.append(self.E @ slope, 1.0 if worst else 0.0),
            A_ub=np.array(A),
            b_ub=np.array(b),
            A_eq=np.append(np.ones(C), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * C + [(None, None) if worst else (0, 0)],
            method="highs",
        )
        if result.status != 0:
            return float("inf")
        here = slope @ p + (gaps.max() if worst else 0.0)
        return max(0.0, float(here - result.fun))

    def refine_small_shares(self, x: FloatArray) -> tuple[FloatArray, float]:
        """Sharpen shares below an interior-point method's precision; returns the point and its gap.

        The slope of the KL term is logarithmic, so a share of 1e-11 that should be 1.2e-11 leaves no trace in the objective but a
        large one in the certificate. A multiplicative step towards equal slopes repairs just these; it is kept only where the gap shrinks.
        """
        gap = self.frank_wolfe_gap(self.E.T @ x, self.value(self.E.T @ x))
        for _ in range(5):
            small = x < _SMALL_SHARE
            if gap <= 1e-9 or not self.settings.kl or not small.any():
                break
            p = self.E.T @ x
            slope = self.E @ (self.slope(p) if self.settings.objective != "worst_case" else self._kl_slope(p))
            inner = int(np.argmax(x))
            trial = x * np.where(small, np.exp(np.clip((slope[inner] - slope) / self.settings.kl, -30, 30)), 1.0)
            trial /= trial.sum()
            better = self.frank_wolfe_gap(self.E.T @ trial, self.value(self.E.T @ trial))
            if not better < gap or self.violation(self.E.T @ trial) > VIOLATION_TOLERANCE:
                break
            x, gap = trial, better
        if not gap <= GAP_TOLERANCE:
            p = self.E.T @ x
            gap = min(gap, self.frank_wolfe_gap(p, self.value(p), steepened=True))
        if not gap <= GAP_TOLERANCE:
            gap = min([gap, *(self.raised_gap(x, floor) for floor in _TANGENT_FLOORS)])
        return x, gap

    def raised_gap(self, x: FloatArray, floor: float) -> float:
        """The gap of x by the tangent at a point beside it whose small shares are `floor`.

        Any tangent bounds the minimum from below. Where slopes at zero are infinite (`p^rho`), the one at the answer itself says nothing.
        """
        beside = np.maximum(x, floor)
        q = self.E.T @ (beside / beside.sum())
        objective = self.value(q)
        return max(0.0, self.frank_wolfe_gap(q, objective) + self.value(self.E.T @ x) - objective)

    def _kl_slope(self, p: FloatArray) -> FloatArray:
        if not self.settings.kl:
            return np.zeros(len(p))
        shares = np.maximum(p, 1e-290)
        return self.settings.kl * np.where(self.q > 0, np.log(shares / np.maximum(self.q, 1e-300)) + 1, 0.0)

    def slope(self, p: FloatArray) -> FloatArray:
        """Gradient of a mean objective or of the log mean perplexity, (D,)."""
        pull = self.omega
        if self.settings.objective == "perplexity":
            pull = softmax(np.log(np.maximum(self.omega, 1e-300)) + self.law.predict(p[None])[0])
        return self._kl_slope(p) + pull @ self.law.gradient(p)

    # -- the conic program -------------------------------------------------------------------------------------

    def _program(self, rows: Sequence[LinearRow], limits: Sequence[str], *, with_objective: bool) -> ConicProgram:
        metrics, settings = self.law.metrics, self.settings
        used = list(range(len(metrics))) if with_objective else [metrics.index(m) for m in limits]
        goal = Goal(
            objective=settings.objective, omega=self.omega, reference=self._reference(), kl=settings.kl, prior=self.q
        )
        return ConicProgram(
            E=self.E,
            form=self.law.conic(used),
            constant=self.law.constant[used],
            rows=rows,
            limits=[(used.index(metrics.index(m)), self.constraints.max_loss[m]) for m in limits],
            goal=goal if with_objective else None,
        )

    def conic(self, options: Mapping[str, Any]) -> tuple[FloatArray, str, int]:
        program = self._program(self.rows, tuple(self.constraints.max_loss), with_objective=True)
        solution = program.solve(options)
        status, x = str(solution.status), np.maximum(np.array(solution.x[: self.E.shape[0]]), 0.0)
        if not (np.all(np.isfinite(x)) and x.sum() > 0):
            x = np.ones(len(x))
        if status in ("PrimalInfeasible", "AlmostPrimalInfeasible"):
            raise InfeasibleError(self._conflicts())
        if status not in _SOLVED:  # the certificate decides, unless nothing is feasible
            conflicts = self._conflicts(check_only=True)
            if conflicts:
                raise InfeasibleError(conflicts)
        return x / x.sum(), status, int(solution.iterations)

    def _conflicts(self, *, check_only: bool = False) -> list[str]:
        """An irreducible set of contradictory constraints, by deletion: what remains is needed for the conflict."""
        labels = list(dict.fromkeys(r.label for r in self.rows)) + list(self.constraints.max_loss)

        def feasible(kept: Sequence[str]) -> bool:
            rows = tuple(r for r in self.rows if r.label in kept)
            limits = tuple(m for m in self.constraints.max_loss if m in kept)
            program = self._program(rows, limits, with_objective=False)
            return str(program.solve().status) in _SOLVED

        if check_only and feasible(labels):
            return []
        kept = labels
        for label in labels:
            without = [other for other in kept if other != label]
            if not feasible(without):
                kept = without
        sentences = [self.constraints.loss_label(k) if k in self.constraints.max_loss else k for k in kept]
        if self.coordinates.names != self.coordinates.domains:
            sentences.append(f"shares add up to 1, and only {', '.join(self.coordinates.names)} can be varied")
        else:
            sentences.append("shares add up to 1")
        return sentences
