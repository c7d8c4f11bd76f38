r"""Solve the convex problem of `problem` by Clarabel: the law's own cones, exponential ones for the KL term.

It knows infeasible from difficult. No answer leaves without a certificate that does not depend on the solver (`certificate`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix.errors import InfeasibleError, SolverError
from opmix.mixing.certificate import GAP_TOLERANCE, VIOLATION_TOLERANCE, refined
from opmix.mixing.conic import ATTEMPTS
from opmix.mixing.constraints import Constraints, LinearRow
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import SOLVED, Coordinates, Problem, SolveSettings
from opmix.protocols.law import MixingLaw

_ROUNDING = 1e-12


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
        return self.status in SOLVED


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
    problem = Problem.build(law, coordinates, settings or SolveSettings(), constraints or Constraints())
    if conflicts := contradicting_bounds(problem.rows, len(problem.coordinates.domains)):
        raise InfeasibleError(conflicts)
    found: list[Solution] = []
    for options in ATTEMPTS:
        x, status, iterations = problem.conic(options)
        gap = float("nan")
        if certify:
            x, gap = refined(problem, x)
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
