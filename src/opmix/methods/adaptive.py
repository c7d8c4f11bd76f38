"""A search that stops when it knows enough: probes are looked at while they train, on few points and sequences first.

After each part of the probes' run the law is fitted and solved, and the search ends where

    u(steps) + change(steps) < tolerance.

`u` is the upper end of the recommendation's predicted regret (`mixing.regret`), `change` what the present law would have the
recommendation of the part before cost. Every part doubles the run, so the change is what half of the horizon would have got wrong; the
first look has none and never ends a search. Both are shares of what mixtures change at all.

Where the change is small enough, a closer look may do what more training would: the held-out sequences are doubled if most of the regret
is due to their number, the points if it is not, as long as that costs less than the next part of the probes' run. A run that is not
stopped ends in the search that the settings describe, with everything.

None of this is in arXiv 2605.15220, which trains probes of a fixed length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opmix.errors import InfeasibleError, LawError, SolverError
from opmix.mixing.design import StageDesign
from opmix.mixing.regret import PredictedRegret, change, predicted_regret
from opmix.protocols.mixing_method import Fidelity, LawProposal, MethodContext, Simulation

if TYPE_CHECKING:
    from opmix.methods.op_mix import OpMix

FIRST_SEQUENCES = 8
"""Held-out sequences a domain of the first look, about."""
FIRST_POINTS = 3
"""Interpolated points of the first look on a line; elsewhere as many as there are coordinates, and one more."""
FEWEST_STEPS = 4
"""Before a look, unless the first is said: fewer tell of the optimiser's start rather than of the data."""
HALVINGS = 4
"""Looks before the last: the first comes after a sixteenth of the steps."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When probes are looked at, and how closely."""

    steps: int
    """At most."""
    first: int | None = None
    """Steps before the first look, at least; None: a sixteenth of all, and no fewer than four."""
    sequences: int
    """Held-out sequences of a domain, at most."""
    tolerance: float
    """Share of what mixtures change."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Steps of every look but the last: `steps` halved again and again.

        Examples:
            >>> Looks(steps=60, sequences=64, tolerance=0.05).parts
            (4, 8, 15, 30)
        """
        halves = [math.ceil(self.steps / 2**k) for k in range(HALVINGS if self.first is None else 64, 0, -1)]
        least = FEWEST_STEPS if self.first is None else self.first
        return tuple(sorted({h for h in halves if least <= h < self.steps}))

    @property
    def doublings(self) -> int:
        """How often the sequences of the first look can be doubled."""
        return int(math.log2(self.sequences / FIRST_SEQUENCES)) if self.sequences > FIRST_SEQUENCES else 0


@dataclass(frozen=True)
class Closeness:
    """How closely probes are looked at: how often the first look's sequences and points have been doubled."""

    sequences: int = 0
    points: int = 0

    def fidelity(self, looks: Looks, steps: int) -> Fidelity:
        """What that is worth after so many steps."""
        return Fidelity(steps=steps, thinning=self.thinning(looks))

    def thinning(self, looks: Looks) -> int:
        """Every how manieth sequence is used."""
        return int(2 ** max(0, looks.doublings - self.sequences))


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What was simulated for a decision, and what the law says of it."""

    design: StageDesign
    simulated: Simulation
    proposal: LawProposal


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look said."""

    found: Searched
    steps: int
    close: Closeness
    regret: PredictedRegret
    change: float | None
    """Share of the spread; None: there was no look at a shorter run."""

    @property
    def bound(self) -> float:
        """What must fall below the tolerance."""
        return math.inf if self.change is None else self.regret.interval[1] + self.change

    def json(self) -> dict[str, Any]:
        """For the record of the search."""
        return {
            **_seen(self.found, self.steps), "predicted_regret": self.regret.mean, "interval": list(self.regret.interval),
            "noise": self.regret.noise, "spread": self.regret.spread, "change": self.change,
        }  # fmt: skip


def _seen(found: Searched, steps: int) -> dict[str, Any]:
    simulated, proposal = found.simulated, found.proposal
    return {
        "steps": steps, "points": len(simulated.losses), "sequences": max(len(t) for t in simulated.tokens),
        "proposal": dict(proposal.mixture), "optimum": dict(proposal.verdict.optimum.mixture),
        "action": proposal.verdict.decision.action, "flops": simulated.training_flops + simulated.evaluation_flops,
    }  # fmt: skip


def search_by_looks(method: OpMix, context: MethodContext, looks: Looks) -> Searched:
    """Train and look until the predicted regret is below the tolerance, or the probes are through."""
    trail: list[dict[str, Any]] = []
    for look in _looks(method, context, looks, trail):
        trail.append(look.json())
        if look.bound < looks.tolerance:
            reason = (
                f"probes stopped after {look.steps} of {looks.steps} steps: the predicted regret is at most {look.bound:.3f} of what "
                f"mixtures change, below the tolerance of {looks.tolerance:g}"
            )
            return _answer(look.found, looks, trail, look.steps, reason)
    whole = method.looked_at(context)
    trail.append(_seen(whole, looks.steps))
    reason = f"probes trained for all {looks.steps} steps: the predicted regret never fell below the tolerance of {looks.tolerance:g}"
    return _answer(whole, looks, trail, looks.steps, reason)


def _looks(method: OpMix, context: MethodContext, looks: Looks, trail: list[dict[str, Any]]) -> Iterator[Look]:
    """Looks in order; which comes next depends on what the last one said."""
    close, before, trained = Closeness(), None, 0.0
    for steps, then in zip(looks.parts, (*looks.parts[1:], looks.steps), strict=True):
        closer: Closeness | None = close
        while closer is not None:
            close = closer
            try:
                look = _look(method, context, looks, steps, close, before)
            except (InfeasibleError, LawError, SolverError) as error:  # few points, limits inside the noise: go on
                trail.append({"steps": steps, "error": str(error)})
                break
            yield look
            trained += look.found.simulated.training_flops
            closer = _closer(method, context, looks, look, trained * (then - steps) / steps)
        else:
            before = look


def _closer(method: OpMix, context: MethodContext, looks: Looks, look: Look, next_part: float) -> Closeness | None:
    """A closer look at the same probes, where it may do and costs less FLOPs than their next part; else None."""
    if look.change is None or look.change >= looks.tolerance:
        return None
    close, cost = look.close, look.found.simulated.evaluation_flops
    if 2 * look.regret.noise >= look.regret.mean:
        raised, growth = replace(close, sequences=close.sequences + 1), 2.0
        possible = raised.sequences <= looks.doublings
    else:
        raised = replace(close, points=close.points + 1)
        now, more = (method.few_points(context.stage, c.points) for c in (close, raised))
        possible, growth = more > now, 1 + (more - now) / (len(look.found.design.points) + 1)
    return raised if possible and growth * cost < next_part else None


def _look(
    method: OpMix, context: MethodContext, looks: Looks, steps: int, close: Closeness, before: Look | None
) -> Look:
    points = method.few_points(context.stage, close.points)
    found = method.looked_at(context, close.fidelity(looks, steps), points=points)
    verdict, fit = found.proposal.verdict, found.proposal.fit
    regret = predicted_regret(verdict, fit, method.evaluation_noise(context, found.design, found.simulated))
    moved = None
    if before is not None:
        moved = change(verdict, fit, before.found.proposal.mixture) / regret.spread
    return Look(found=found, steps=steps, close=close, regret=regret, change=moved)


def _answer(found: Searched, looks: Looks, trail: list[dict[str, Any]], steps: int, reason: str) -> Searched:
    evidence = {
        "steps": steps,
        "of": looks.steps,
        "tolerance": looks.tolerance,
        "reason": reason,
        "segments": trail,
    }
    return replace(found, proposal=replace(found.proposal, evidence={"adaptive": evidence}))
