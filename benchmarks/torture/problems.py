"""Random laws and constraints: what `solve` answers is feasible and best, what it refuses cannot be met.

The oracle shares nothing with the solver: objective and limits are computed from predicted losses alone and linearised by differences at
the answer. For a convex objective the minimum over the linearised constraints bounds it from below (Frank and Wolfe), so an
answer whose gap is small is the best one, whoever found it. What is refused is held against a linear program of the shares alone, and
against the largest slack that SLSQP finds where losses are limited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog, minimize

Floats = npt.NDArray[np.float64]
FEASIBLE, BEST = 1e-6, 1e-5


def random_law(rng: np.random.Generator, domains: tuple[str, ...], metrics: tuple[str, ...]) -> Any:
    """A log-linear law, or one in effective tokens; wild ones among them."""
    from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
    from opmix.mixing.log_linear import LogLinearLaw

    count, size = len(metrics), len(domains)
    if rng.random() < 0.5:
        slopes = rng.normal(0, rng.choice([0.05, 0.5, 3.0]), (count, size))
        return LogLinearLaw(metrics, domains, rng.uniform(0, 4, count), slopes, rng.normal(0, 0.5, count), size)
    worth = rng.exponential(rng.choice([0.1, 1.0, 10.0]), (count, size)) * (rng.random((count, size)) < 0.8) + 1e-3
    unique = np.where(rng.random(size) < 0.3, rng.uniform(0.2, 5, size), np.inf)
    return EffectiveTokensLaw(
        metrics,
        domains,
        rng.uniform(2, 5, count),
        rng.uniform(0.02, 0.6, count),
        worth,
        float(rng.uniform(0.3, 1.0)),
        Tokens(float(rng.uniform(0.5, 20)), unique),
    )


def random_rules(rng: np.random.Generator, law: Any, domains: tuple[str, ...]) -> Any:
    """Floors, ceilings, fixed shares, a group, limits of losses: some of them, now and then too many."""
    from opmix.mixing.constraints import Constraints, Group

    size = len(domains)
    floors = {d: float(rng.uniform(0, 1.2 / size)) for d in domains if rng.random() < 0.2}
    ceilings = {d: float(rng.uniform(0.5 / size, 1)) for d in domains if rng.random() < 0.3}
    fixed = {domains[0]: float(rng.uniform(0, 0.5))} if rng.random() < 0.1 else {}
    group = {"g": Group(domains=domains[: max(1, size // 2)], ceiling=float(rng.uniform(0.2, 1)))}
    limits = {}
    if rng.random() < 0.3:
        base = law.predict(np.full((1, size), 1 / size))[0]
        limits = {law.metrics[0]: float(base[0] * rng.choice([0.98, 1.0, 1.05]))}
    return Constraints(
        floors=floors, ceilings=ceilings, fixed=fixed, groups=group if rng.random() < 0.2 else {}, max_loss=limits
    )


def objective(law: Any, settings: Any, p: Floats) -> float:
    """The definition, from predicted losses alone."""
    p = np.maximum(p, 0)
    losses = law.predict(p[None])[0]
    omega = settings.weights(len(losses))
    kinds: dict[str, Callable[[], float]] = {
        "mean": lambda: float(omega @ losses),
        "weighted": lambda: float(omega @ losses),
        "perplexity": lambda: float(np.log(omega @ np.exp(losses - losses.max())) + losses.max()),
    }
    prior = np.full(len(p), 1 / len(p))
    inside = p > 0
    return kinds[settings.objective]() + settings.kl * float(np.sum(p[inside] * np.log(p[inside] / prior[inside])))


def slope(function: Callable[[Floats], float], p: Floats) -> Floats:
    """Central differences in relative steps; `p` has no zeros."""
    found = np.zeros(len(p))
    for i in range(len(p)):
        step = 1e-4 * p[i]
        up, down = p.copy(), p.copy()
        up[i] += step
        down[i] -= step
        found[i] = (function(up) - function(down)) / (2 * step)
    return found


def gap(law: Any, settings: Any, rules: Any, p: Floats) -> float:
    """How far the objective can be from its minimum, at most: by the best of some tangents, for a convex function lies above them all."""
    value, best = objective(law, settings, p), -np.inf
    for floor in TANGENTS:
        bound = _minimum_over_tangents(law, settings, rules, np.maximum(p, floor))
        best = max(best, bound) if np.isfinite(bound) else best
        if value - best < BEST / 10:
            break
    return float(value - best)


TANGENTS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""Smallest shares of the points at which tangents are laid: at none, a power of a share has no slope."""


def _minimum_over_tangents(law: Any, settings: Any, rules: Any, p: Floats) -> float:
    gradient = slope(lambda x: objective(law, settings, x), p)
    rows = [(r.row, r.bound) for r in rules.rows(law.domains)]
    for metric, limit in rules.max_loss.items():
        e = law.metrics.index(metric)

        def loss(x: Floats, e: int = e) -> float:
            return float(law.predict(x[None])[0][e])

        tangent = slope(loss, p)
        # A loss that hardly changes with the mixture is scaled until it does: what the program may miss a row by is many shares else.
        scale = 1 / min(1.0, float(np.ptp(tangent)) or 1.0)
        rows.append((scale * tangent, scale * (limit - loss(p) + float(tangent @ p))))
    upper = (np.array([r for r, _ in rows]), np.array([b + 1e-9 for _, b in rows])) if rows else (None, None)
    best = linprog(gradient, *upper, np.ones((1, len(p))), np.ones(1), bounds=(0, 1))
    if best.status != 0:
        return float("nan")
    return objective(law, settings, p) + float(best.fun - gradient @ p)


def can_be_met(law: Any, rules: Any) -> bool:
    """Whether some mixture keeps every rule with a margin."""
    rows, size = rules.rows(law.domains), len(law.domains)
    if rows:
        a = np.array([[*r.row, -1.0] for r in rows])
        slack = linprog(
            [*np.zeros(size), 1.0],
            a,
            [r.bound for r in rows],
            np.array([[*np.ones(size), 0.0]]),
            [1.0],
            bounds=[(0, 1)] * size + [(-1, None)],
        )
        if slack.status != 0 or slack.fun > 1e-7:
            return False
        if not rules.max_loss:
            return True
    excess = [(law.metrics.index(m), limit) for m, limit in rules.max_loss.items()]

    def worst(p: Floats) -> float:
        return max(float(law.predict(np.maximum(p, 0)[None])[0][e] - limit) for e, limit in excess)

    for seed in range(3):
        start = np.random.default_rng(seed).dirichlet(np.ones(size))
        found = minimize(
            worst,
            start,
            method="SLSQP",
            bounds=[(0, 1)] * size,
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                *({"type": "ineq", "fun": lambda p, r=r: r.bound - r.row @ p} for r in rows),
            ],
        )
        kept = all(r.row @ found.x <= r.bound + 1e-7 for r in rows) and abs(found.x.sum() - 1) < 1e-7
        if kept and worst(found.x) < -1e-6:
            return True
    return False


def one(seed: int) -> tuple[str, str]:
    """What became of one problem, and what is wrong about it."""
    from opmix.errors import InfeasibleError, SolverError
    from opmix.mixing.problem import SolveSettings
    from opmix.mixing.solver import solve

    rng = np.random.default_rng(seed)
    size, count = int(rng.integers(2, 9)), int(rng.integers(1, 7))
    domains, metrics = tuple(f"d{i}" for i in range(size)), tuple(f"m{i}" for i in range(count))
    law = random_law(rng, domains, metrics)
    rules = random_rules(rng, law, domains)
    chosen = str(rng.choice(["mean", "weighted", "perplexity"]))
    omega = rng.random(count) + 1e-3 if chosen == "weighted" else None
    settings = SolveSettings(objective=chosen, omega=omega, kl=float(rng.choice([0.0, 1e-4, 0.005, 0.05, 1.0])))
    try:
        answer = solve(law, settings=settings, constraints=rules)
    except InfeasibleError:
        return "infeasible", "can be met" if can_be_met(law, rules) else ""
    except SolverError as error:
        return "refused", f"refused: {str(error)[:150]}"
    p = answer.mixture.weights
    broken = rules.violation(answer.mixture, dict(zip(metrics, law.predict(p[None])[0], strict=True)))
    if broken > FEASIBLE:
        return "solved", f"a rule is broken by {broken:.1e}"
    distance = gap(law, settings, rules, p)
    scale = max(1.0, abs(objective(law, settings, p)))
    return "solved", f"{distance:.1e} from the best" if distance > 10 * BEST * scale else ""


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Solve random problems."""
    deadline = time.monotonic() + seconds
    done: dict[str, int] = {"solved": 0, "infeasible": 0, "refused": 0}
    wrong = []
    for number in range(part[0], most, part[1]):
        if time.monotonic() > deadline:
            break
        kind, text = one(seed * 10**7 + number)
        done[kind] += 1
        if text:
            wrong.append(f"problem {seed * 10**7 + number}: {text}")
    return {"done": done, "wrong": wrong}
