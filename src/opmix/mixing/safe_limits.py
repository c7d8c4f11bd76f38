"""Limits on losses held by the upper end of what the law foretells, not by its middle: half of all limits would else be broken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from opmix.errors import InfeasibleError, SolverError
from opmix.mixing.constraints import Constraints
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.posterior import percentiles
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import Solution, solve
from opmix.protocols.law import LawDraws, MixingLaw

LEVEL = 0.6
"""Of the interval whose upper end keeps a limit: four in five by the law's posterior. Measured, of full trainings foretold to come near a
limit so, 2 % broke it where the domain had a share of 0.5 % or more, and a fifth below (docs/experiments.md); at 0.9, half of the gain of
targets was lost to limits that nothing came near."""
TOLERANCE = 5e-4
"""Nats by which an upper end may exceed its limit, or stay below it where the limit binds."""
_ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class LossLimit:
    """What is foretold of a limited loss at one mixture, nats per token."""

    metric: str
    limit: float
    foretold: float
    interval: tuple[float, float]
    current: float | None = None
    """The loss that the limit is told in percent of."""

    @property
    def kept(self) -> bool:
        """Whether even the upper end keeps it."""
        return self.interval[1] <= self.limit + 2 * TOLERANCE

    @property
    def binds(self) -> bool:
        """Whether the mixture goes as far as it allows, or further."""
        return self.interval[1] >= self.limit - 4 * TOLERANCE


def limits_at(
    mixture: Mixture, law: MixingLaw, draws: LawDraws, constraints: Constraints, level: float = LEVEL
) -> tuple[LossLimit, ...]:
    """What law and draws foretell of every limited loss; intervals at `level`."""
    told = np.minimum(law.predict(mixture.weights)[0], draws.ceiling)
    drawn = np.minimum(draws.predict(mixture.weights)[:, 0], draws.ceiling)
    found = []
    for metric, limit in constraints.max_loss.items():
        e = law.metrics.index(metric)
        found.append(
            LossLimit(
                metric=metric,
                limit=float(limit),
                foretold=float(told[e]),
                interval=percentiles(drawn[:, e], level),
                current=constraints.current_loss.get(metric),
            )
        )
    return tuple(found)


def tightened(constraints: Constraints, at: tuple[LossLimit, ...]) -> Constraints:
    """With limits lower by what the upper end is above the middle at one mixture, which always meets them: for others beside it."""
    lower = {x.metric: x.limit - max(min(x.interval[1], x.limit) - x.foretold, 0.0) for x in at}
    return replace(constraints, max_loss={m: lower.get(m, limit) for m, limit in constraints.max_loss.items()})


def solve_safely(
    law: MixingLaw,
    draws: LawDraws,
    *,
    coordinates: Coordinates,
    settings: SolveSettings,
    constraints: Constraints,
    level: float = LEVEL,
) -> Solution:
    """The optimum whose limited losses keep their limits at the upper end of the interval at `level`.

    The distance of the upper end from the middle depends on the mixture; it is taken off the limits until both agree. Where no mixture
    keeps them so, the one that is nearest to it is taken, among those that keep them by the law's own value.

    Raises:
        InfeasibleError: Not even the law's own value can keep all constraints.
    """

    def solved(margins: FloatArray) -> Solution:
        tight = {m: x - float(y) for (m, x), y in zip(constraints.max_loss.items(), margins, strict=True)}
        within = replace(constraints, max_loss=tight)
        return solve(law, coordinates=coordinates, settings=settings, constraints=within)

    def wanted(found: Solution) -> FloatArray:
        at = limits_at(found.mixture, law, draws, constraints, level)
        return np.array([max(x.interval[1] - x.foretold, 0.0) for x in at])

    def excess(found: Solution) -> float:
        at = limits_at(found.mixture, law, draws, constraints, level)
        return max((x.interval[1] - x.limit for x in at), default=-np.inf)

    margins = np.zeros(len(constraints.max_loss))
    best = solved(margins)
    if excess(best) <= TOLERANCE:
        return best
    low, step = margins, 0.5  # margins that some mixture meets
    aim = wanted(best)
    for _ in range(_ROUNDS):
        margins = low + step * (aim - low)
        try:
            found = solved(margins)
        except (InfeasibleError, SolverError):
            step /= 2
            continue
        low, aim, over = margins, wanted(found), excess(found)
        if _better(found, over, best, excess(best)):
            best = found
        if abs(over) <= TOLERANCE:
            break
    return best


def _better(found: Solution, over: float, best: Solution, best_over: float) -> bool:
    if over <= TOLERANCE and best_over <= TOLERANCE:
        return found.objective < best.objective
    return over < best_over
