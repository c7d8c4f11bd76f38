"""How far an answer can be from the optimum, whatever solver found it, and its last digits where that is not near enough.

The Frank-Wolfe gap, computed by HiGHS on the linearised problem, bounds how far the objective can be from its minimum.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.mixing.polish import polished
from opmix.mixing.problem import Problem

GAP_TOLERANCE = 1e-5
"""Largest certified distance from the optimum that is accepted, in nats (times the objective or the KL weight where they exceed 1)."""
VIOLATION_TOLERANCE = 1e-6
_SMALL_SHARE = 1e-5
_TIGHT = 1e-7
"""Of shares or nats: nearer to its bound, a constraint holds with equality."""
_POLISHINGS = 8
_TANGENT_FLOORS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)


def frank_wolfe_gap(problem: Problem, p: FloatArray, objective: float, *, steepened: bool = False) -> float:
    """Upper bound on `objective - minimum`, whatever solver found p.

    Every convex function lies above its tangent, so minimising the tangents of objective and loss limits over
    the linear constraints (an LP) gives a lower bound on the minimum.

    Args:
        problem: The problem.
        p: Mixture (D,).
        objective: Its value there.
        steepened: Limits of losses that hardly change with the mixture are scaled until they do: what the LP lets them be missed
            by is many shares otherwise.
    """
    C = problem.E.shape[0]
    worst = problem.settings.objective == "worst_case"
    slope = problem.kl_slope(p) if worst else problem.slope(p)
    A = [np.append(problem.E @ r.row, 0.0) for r in problem.rows]
    b = [r.bound + 1e-12 for r in problem.rows]
    gradient, predicted = problem.law.gradient(p), problem.law.predict(p[None])[0]
    for metric, limit in problem.constraints.max_loss.items():
        e = problem.law.metrics.index(metric)
        row = problem.E @ gradient[e]
        scale = 1 / np.ptp(row) if steepened and 0 < np.ptp(row) < 1 else 1.0
        A.append(np.append(scale * row, 0.0))
        b.append(scale * (limit - predicted[e] + gradient[e] @ p) + 1e-9)
    gaps = problem.worst_gaps(p)
    if worst:  # epigraph variable tau: tangent of every loss stays below it
        for e in (e for e in range(len(gaps)) if np.isfinite(gaps[e])):
            A.append(np.append(problem.E @ gradient[e], -1.0))
            b.append(float(gradient[e] @ p - gaps[e]))
    if not A:  # over the simplex a plane is lowest in a corner
        return max(0.0, float(slope @ p - (problem.E @ slope).min()))
    from scipy.optimize import linprog  # a tenth of a second or more

    result = linprog(
        np.append(problem.E @ slope, 1.0 if worst else 0.0),
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


def refined(problem: Problem, x: FloatArray) -> tuple[FloatArray, float]:
    """Sharpen shares below an interior-point method's precision; returns the point and its gap.

    The slope of the KL term is logarithmic, so a share of 1e-11 that should be 1.2e-11 leaves no trace in the objective but a
    large one in the certificate. A multiplicative step towards equal slopes repairs just these; it is kept only where the gap shrinks.
    """
    gap = frank_wolfe_gap(problem, problem.E.T @ x, problem.value(problem.E.T @ x))
    for _ in range(5):
        small = x < _SMALL_SHARE
        if gap <= 1e-9 or not problem.settings.kl or not small.any():
            break
        p = problem.E.T @ x
        slope = problem.E @ (problem.slope(p) if problem.settings.objective != "worst_case" else problem.kl_slope(p))
        inner = int(np.argmax(x))
        trial = x * np.where(small, np.exp(np.clip((slope[inner] - slope) / problem.settings.kl, -30, 30)), 1.0)
        trial /= trial.sum()
        better = frank_wolfe_gap(problem, problem.E.T @ trial, problem.value(problem.E.T @ trial))
        if not better < gap or problem.violation(problem.E.T @ trial) > VIOLATION_TOLERANCE:
            break
        x, gap = trial, better
    if not gap <= GAP_TOLERANCE:
        p = problem.E.T @ x
        gap = min(gap, frank_wolfe_gap(problem, p, problem.value(p), steepened=True))
    if not gap <= GAP_TOLERANCE:
        gap = min([gap, *(raised_gap(problem, x, floor) for floor in _TANGENT_FLOORS)])
    if not gap <= GAP_TOLERANCE and problem.settings.objective != "worst_case":
        x, gap = _polish(problem, x, gap)
    return x, gap


def _polish(problem: Problem, x: FloatArray, gap: float) -> tuple[FloatArray, float]:
    """Newton's steps, as long as the gap shrinks; limits of losses count as their tangents."""
    p = problem.E.T @ x
    normals = [problem.E @ r.row for r in problem.rows if r.row @ p > r.bound - _TIGHT]
    gradient, predicted = problem.law.gradient(p), problem.law.predict(p[None])[0]
    for metric, limit in problem.constraints.max_loss.items():
        e = problem.law.metrics.index(metric)
        if predicted[e] > limit - _TIGHT:
            normals.append(problem.E @ gradient[e])
    tight = np.array(normals).reshape(-1, len(x))
    for trial in islice(polished(x, lambda at: problem.E @ problem.slope(problem.E.T @ at), tight), _POLISHINGS):
        p = problem.E.T @ trial
        better = frank_wolfe_gap(problem, p, problem.value(p), steepened=True)
        if not better < gap or problem.violation(p) > VIOLATION_TOLERANCE:
            break
        x, gap = trial, better
    return x, gap


def raised_gap(problem: Problem, x: FloatArray, floor: float) -> float:
    """The gap of x by the tangent at a point beside it whose small shares are `floor`.

    Any tangent bounds the minimum from below. Where slopes at zero are infinite (`p^rho`), the one at the answer itself says nothing.
    """
    beside = np.maximum(x, floor)
    q = problem.E.T @ (beside / beside.sum())
    objective = problem.value(q)
    return max(0.0, frank_wolfe_gap(problem, q, objective) + problem.value(problem.E.T @ x) - objective)
