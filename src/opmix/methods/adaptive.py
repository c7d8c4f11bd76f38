"""How far a search trains and evaluates: to the end, or until the predicted regret is small.

An adaptive schedule climbs rungs (as multi-fidelity searches do, Hyperband among them): probes are evaluated while they
train, on few points and sequences first. At each rung the law is fitted and solved, and the search ends where

    u(steps) + change(steps) < tolerance.

`u` is the upper end of the recommendation's predicted regret (`mixing.regret`), `change` what the present law would have the
recommendation of the run half as long cost. Every longer rung doubles the run, so the change is what half of the horizon would
have got wrong; the first rung has none and never ends a search. Both are shares of what mixtures change at all.

Where the change is small enough, a finer rung may do what more training would: the held-out sequences are doubled if most of
the regret is due to their number, the points if it is not, as long as that costs less than the next part of the probes' run. A
run that is not stopped ends in the search that the settings describe, with everything.

None of this is in arXiv 2605.15220, which trains probes of a fixed length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from opmix.errors import InfeasibleError, LawError, SolverError
from opmix.methods.outcome import SearchOutcome
from opmix.mixing.design import StageDesign, default_points
from opmix.mixing.regret import PredictedRegret, change, predicted_regret
from opmix.protocols.mixing_method import FULL, Fidelity

FIRST_SEQUENCES = 8
"""Held-out sequences a domain of the first rung, about."""
FIRST_POINTS = 3
"""Interpolated points of the first rung on a line; elsewhere as many as there are coordinates, and one more."""
FEWEST_STEPS = 4
"""Of the first rung, unless it is said: fewer tell of the optimiser's start rather than of the data."""
HALVINGS = 4
"""Rungs before the last: the first comes after a sixteenth of the steps."""


Fit = Callable[[Fidelity, int | None], SearchOutcome]
"""Simulate, fit and decide at a fidelity, on so many interpolated points; None: as many as the settings say."""


class Schedule(Protocol):
    """Says how far probes are trained and how much is evaluated."""

    def run(self, fit: Fit, design: StageDesign) -> SearchOutcome:
        """The outcome that a search ends with; `design` is the whole one."""

    def dearest_course(self, design: StageDesign) -> tuple[tuple[Fidelity, int], ...]:
        """Fidelity and interpolated points of what is evaluated before the last, whole simulation, at most."""


@dataclass(frozen=True)
class WholeRun:
    """Train every probe to its end and evaluate everything, as the paper does."""

    def run(self, fit: Fit, design: StageDesign) -> SearchOutcome:
        """See `Schedule`."""
        return fit(FULL, None)

    def dearest_course(self, design: StageDesign) -> tuple[tuple[Fidelity, int], ...]:
        """See `Schedule`."""
        return ()


@dataclass(frozen=True)
class Rung:
    """One fidelity: the probes' steps, and how often the first rung's sequences and points have been doubled."""

    steps: int
    sequences: int = 0
    points: int = 0


@dataclass(frozen=True, kw_only=True)
class RungOutcome:
    """What a search would decide at a rung, and what that may cost."""

    rung: Rung
    outcome: SearchOutcome
    regret: PredictedRegret
    change: float | None
    """Share of the spread; None: no shorter run was evaluated."""

    @property
    def bound(self) -> float:
        """What must fall below the tolerance."""
        return math.inf if self.change is None else self.regret.interval[1] + self.change

    def json(self) -> dict[str, Any]:
        """For the record of the search."""
        return {
            **_record(self.outcome, self.rung.steps),
            "predicted_regret": self.regret.mean,
            "interval": list(self.regret.interval),
            "noise": self.regret.noise,
            "spread": self.regret.spread,
            "change": self.change,
        }


@dataclass(frozen=True, kw_only=True)
class AdaptiveSchedule:
    """Evaluates probes while they train, and stops when the predicted regret is below the tolerance."""

    steps: int
    """Optimizer steps of a probe, at most."""
    first: int | None = None
    """Steps of the first rung, at least; None: a sixteenth of all, and no fewer than four."""
    sequences: int
    """Held-out sequences of a domain, at most."""
    points: int | None = None
    """Interpolated points, at most; None: the design's default."""
    tolerance: float
    """Share of what mixtures change."""

    @property
    def rung_steps(self) -> tuple[int, ...]:
        """Steps of every rung but the last, whole one: `steps` halved again and again.

        Examples:
            >>> AdaptiveSchedule(steps=60, sequences=64, tolerance=0.05).rung_steps
            (4, 8, 15, 30)
        """
        halves = [math.ceil(self.steps / 2**k) for k in range(HALVINGS if self.first is None else 64, 0, -1)]
        least = FEWEST_STEPS if self.first is None else self.first
        return tuple(sorted({h for h in halves if least <= h < self.steps}))

    @property
    def doublings(self) -> int:
        """How often the sequences of the first rung can be doubled."""
        return int(math.log2(self.sequences / FIRST_SEQUENCES)) if self.sequences > FIRST_SEQUENCES else 0

    def fidelity(self, rung: Rung) -> Fidelity:
        """What a rung asks of a simulation."""
        return Fidelity(steps=rung.steps, thinning=int(2 ** max(0, self.doublings - rung.sequences)))

    def points_at(self, rung: Rung, design: StageDesign) -> int:
        """Interpolated points of a rung; each doubling of the first ones, up to all of the design's."""
        coordinates = design.coordinates
        line = coordinates.names != coordinates.domains and len(coordinates.names) == 2
        first = FIRST_POINTS if line else len(coordinates.names) + 1
        return min(self.points or default_points(len(design.probes.probes), coordinates), first * 2**rung.points)

    def dearest_course(self, design: StageDesign) -> tuple[tuple[Fidelity, int], ...]:
        """See `Schedule`: after the second run everything is doubled, the sequences first, and later rungs are as fine."""
        steps = self.rung_steps
        levels = [Rung(0, doubled) for doubled in range(self.doublings + 1)]
        finer = replace(levels[-1], points=1)
        while self.points_at(finer, design) > self.points_at(levels[-1], design):
            levels.append(finer)
            finer = replace(finer, points=finer.points + 1)
        climbed = [(at, levels if number == 1 else levels[-1:]) for number, at in enumerate(steps)]
        rungs = [replace(level, steps=at) for at, fineness in climbed for level in fineness]
        rungs[:1] = [replace(levels[0], steps=at) for at in steps[:1]]
        return tuple((self.fidelity(rung), self.points_at(rung, design)) for rung in rungs)

    def run(self, fit: Fit, design: StageDesign) -> SearchOutcome:
        """See `Schedule`."""
        trail: list[dict[str, Any]] = []
        rung, before, trained = Rung(0), None, 0.0
        for steps, then in zip(self.rung_steps, (*self.rung_steps[1:], self.steps), strict=True):
            finer: Rung | None = replace(rung, steps=steps)
            while finer is not None:
                rung = finer
                try:
                    found = self._climbed(fit, design, rung, before)
                except (InfeasibleError, LawError, SolverError) as error:  # few points, limits inside the noise: go on
                    trail.append({"steps": steps, "error": str(error)})
                    break
                trail.append(found.json())
                if found.bound < self.tolerance:
                    reason = (
                        f"probes stopped after {steps} of {self.steps} steps: the predicted regret is at most "
                        f"{found.bound:.3f} of what mixtures change, below the tolerance of {self.tolerance:g}"
                    )
                    return self._recorded(found.outcome, trail, steps, reason)
                trained += found.outcome.simulated.training_flops
                finer = self._finer(design, found, trained * (then - steps) / steps)
            else:
                before = found
        whole = fit(FULL, None)
        trail.append(_record(whole, self.steps))
        reason = (
            f"probes trained for all {self.steps} steps: the predicted regret never fell below the tolerance of "
            f"{self.tolerance:g}"
        )
        return self._recorded(whole, trail, self.steps, reason)

    def _climbed(self, fit: Fit, design: StageDesign, rung: Rung, before: RungOutcome | None) -> RungOutcome:
        outcome = fit(self.fidelity(rung), self.points_at(rung, design))
        verdict, law = outcome.proposal.verdict, outcome.proposal.fit
        regret = predicted_regret(verdict, law, outcome.noise)
        moved = None
        if before is not None:
            moved = change(verdict, law, before.outcome.proposal.mixture) / regret.spread
        return RungOutcome(outcome=outcome, rung=rung, regret=regret, change=moved)

    def _finer(self, design: StageDesign, found: RungOutcome, next_part: float) -> Rung | None:
        """A finer rung of the same probes, where it may do and costs less FLOPs than their next part; else None."""
        if found.change is None or found.change >= self.tolerance:
            return None
        rung, cost = found.rung, found.outcome.simulated.evaluation_flops
        if 2 * found.regret.noise >= found.regret.mean:
            finer, growth = replace(rung, sequences=rung.sequences + 1), 2.0
            possible = finer.sequences <= self.doublings
        else:
            finer = replace(rung, points=rung.points + 1)
            now, more = self.points_at(rung, design), self.points_at(finer, design)
            possible, growth = more > now, 1 + (more - now) / (len(found.outcome.design.points) + 1)
        return finer if possible and growth * cost < next_part else None

    def _recorded(self, outcome: SearchOutcome, trail: list[dict[str, Any]], steps: int, reason: str) -> SearchOutcome:
        evidence = {"steps": steps, "of": self.steps, "tolerance": self.tolerance, "reason": reason, "segments": trail}
        return replace(outcome, proposal=replace(outcome.proposal, evidence={"adaptive": evidence}))


def _record(outcome: SearchOutcome, steps: int) -> dict[str, Any]:
    simulated, proposal = outcome.simulated, outcome.proposal
    return {
        "steps": steps,
        "points": len(simulated.losses),
        "sequences": max(len(t) for t in simulated.tokens),
        "proposal": dict(proposal.mixture),
        "optimum": dict(proposal.verdict.optimum.mixture),
        "action": proposal.verdict.decision.action,
        "flops": simulated.training_flops + simulated.evaluation_flops,
    }
