"""A decision on trained evidence: probes on the optimum and half-way to it, held against one on the mixture in use.

They and another probe on the mixture in use are trained with the data in another order than the law's probes were, so what they measure
and what the law foretells are two accounts of one gain; and what the order alone changes is seen on the mixture that was trained twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.methods.outcome import SearchOutcome
from opmix.mixing.confirm import confirm, surely
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import SURE
from opmix.mixing.effective_tokens_fit import Discrepancy
from opmix.mixing.estimates import Estimate, foretold, pooled
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.problem import SolveSettings
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import Fidelity, LawProposal, MethodContext, Simulation

SAME = 1e-3
"""Shares that differ by less are one mixture."""
ORDER = 1
"""Of the data of the probes that are compared; the law's have 0."""
EXPECTED_NOISE, STRENGTH = 0.09, 4
"""What another order of the data is expected to change of a probe's loss, as a share of what mixtures change of it, before it is seen; and
the observations that this is worth. Measured on the choosing cells of the evidence for targets (docs/experiments.md)."""
RELATED = 0.2
"""Correlation of that change between evaluation sets (0.11 to 0.28 measured there). Between looks at one probe there was little."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Looks at probes in one order of the data, on held-out sequences that the law was not fitted to; the mixture in use first."""

    nll: tuple[tuple[FloatArray, ...], ...]  # by look and evaluation set (K + 1, S_e), summed nats
    tokens: tuple[FloatArray, ...]  # per evaluation set (S_e,)
    settings: SolveSettings
    order_noise: tuple[FloatArray, ...]
    """By look, standard deviation (E,) of one probe's losses by the order of the data, nats."""

    @property
    def gains(self) -> FloatArray:
        """Of each candidate over the mixture in use, the mean over looks, (K,) nats."""
        totals = [count.sum() for count in self.tokens]
        looks = [np.stack([s.sum(axis=1) / t for s, t in zip(sums, totals, strict=True)], axis=1) for sums in self.nll]
        values = np.mean([objective_values(losses, self.settings) for losses in looks], axis=0)
        return np.asarray(values[0] - values[1:])

    def error(self, candidate: int) -> float:
        """Standard error of one gain over held-out sequences and orders of the data, nats."""
        sums = [np.mean(looks, axis=0) for looks in zip(*self.nll, strict=True)]
        held_out = objective_error(loss_difference_error(sums, self.tokens, 0, 1 + candidate), self.settings)
        variances = [2 * _related(noise, self.settings) ** 2 for noise in self.order_noise]
        return float(np.sqrt(held_out**2 + np.sum(variances) / len(variances) ** 2))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mixture that a probe was trained on, and what is known of its gain over the one in use, nats."""

    name: str
    mixture: Mixture
    measured: Estimate
    """Between probes."""
    together: Estimate
    """In the stage, by law and probes."""
    breaks: tuple[str, ...]
    """Evaluation sets on which it loses more than is allowed."""
    probability: float = 0.0
    """Of a gain in the stage, counting that other candidates were tried."""

    def json(self) -> dict[str, Any]:
        """For `mixture.json`."""
        return {
            "name": self.name,
            "mixture": dict(self.mixture),
            "gain": self.together.gain,
            "error": self.together.error,
            "measured_gain": self.measured.gain,
            "measured_error": self.measured.error,
            "probability": self.probability,
            "breaks": list(self.breaks),
        }


def best_measured(
    context: MethodContext,
    outcome: SearchOutcome,
    looks: Sequence[Simulation],
    law_noise: FloatArray,
    discrepancy: Discrepancy,
) -> LawProposal:
    """Train probes on the optimum, on its half-way to the mixture in use and once more on that; the largest sure gain wins.

    What the law foretells of a candidate, less the flattery of having chosen it, and what its probe measured are weighed by their
    precision. "Keep" only where no gain is as sure as the settings ask, counting that two were tried. A candidate whose probe breaks a
    loss limit is out.

    Args:
        context: Trains and evaluates.
        outcome: What the law says.
        looks: At the probes that the law is fitted to, in the order of its points: the last one first.
        law_noise: Standard deviation of one probe's losses by the law, (E,) nats: what is seen of it may be more.
        discrepancy: Between probes and stage.
    """
    proposal, probes = outcome.proposal, outcome.design.probes
    verdict, current = proposal.verdict, context.problem.current
    in_use = [i for i, row in enumerate(probes.R) if np.allclose(row, current.weights, atol=1e-9)]
    allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
    optimum = verdict.optimum.mixture
    if not in_use or not allowed or np.allclose(optimum.weights, current.weights, atol=SAME):
        return proposal
    tried = {"proposal": optimum, "halfway": Mixture(optimum.names, (optimum.weights + current.weights) / 2)}
    again = f"{probes.probes[in_use[0]]}-again"  # a name of its own: by it a run folder knows what is trained
    rows = {again: probes.R[in_use[0]], **{name: mixture.weights for name, mixture in tried.items()}}
    trained = [_trained(context, rows, probes.domains, look.fidelity.steps) for look in reversed(looks)][::-1]
    noise = _order_noise(looks, trained, in_use[0])
    found = compared(outcome.simulated, trained, verdict.settings, noise)
    worth = stage_worth(proposal.fit, probes.R, in_use[0], verdict.settings) or discrepancy.factor
    underrated = max(1.0, _related(noise[0], verdict.settings) / max(_related(law_noise, verdict.settings), 1e-12))
    candidates = []
    for i, ((name, mixture), toward) in enumerate(zip(tried.items(), (1.0, 0.5), strict=True)):
        measured = Estimate(float(found.gains[i]), found.error(i))
        told = foretold(verdict, proposal.fit.law, toward, underrated=underrated)
        together = pooled([told, Estimate(worth * measured.gain, worth * measured.error)])
        breaks = _limits_broken(verdict.constraints, trained[0], 1 + i)
        candidates.append(Candidate(name=name, mixture=mixture, measured=measured, together=together, breaks=breaks))
    rule, tries = verdict.decision_settings, sum(not c.breaks for c in candidates)
    candidates = [
        replace(c, probability=surely(c.together.gain, c.together.for_sign, rule, tries=tries)) for c in candidates
    ]
    whole = [c for c in candidates if not c.breaks]
    best = chosen(whole or candidates, max(rule.asked, SURE))
    verdict = confirm(
        verdict,
        best.measured.gain,
        best.measured.error,
        best.mixture,
        tries=tries,
        together=best.together,
        spread=discrepancy.spread,
    )
    made = {**proposal.evidence, "candidates": [c.json() for c in candidates], "stage_worth": worth}
    return replace(proposal, verdict=verdict, mixture=verdict.mixture, evidence=made)


def chosen(candidates: Sequence[Candidate], confidence: float) -> Candidate:
    """Of those whose gain is as sure as `confidence` the one that gains most; where none is, the surest.

    That a gain is likelier than not may be enough for a move, but a larger one of which that is all that can be said has cost 3.7 % where
    a smaller one was sure (docs/experiments.md).
    """
    sure = [c for c in candidates if c.probability >= confidence]
    return max(sure, key=lambda c: c.together.gain) if sure else max(candidates, key=lambda c: c.probability)


def compared(
    fitted: Simulation, trained: Sequence[Simulation], settings: SolveSettings, noise: tuple[FloatArray, ...]
) -> Compared:
    """On the sequences that the law was not fitted to: those that chose the optimum like it by chance too."""
    unseen = _unseen(fitted, trained[0])
    nll = tuple(tuple(sums[:, kept] for sums, kept in zip(look.nll, unseen, strict=True)) for look in trained)
    tokens = tuple(count[kept] for count, kept in zip(trained[0].tokens, unseen, strict=True))
    return Compared(nll=nll, tokens=tokens, settings=settings, order_noise=noise)


def stage_worth(fit: LawFit, rows: FloatArray, reference: int, settings: SolveSettings) -> float | None:
    """What a nat between probes comes to in the stage by the law, over all its probes (P, D); None: nothing can be told."""
    stage = objective_values(fit.law.predict(rows), settings)
    fitted = objective_values(fit.fitted, settings).reshape(-1, len(rows)).mean(axis=0)  # (P,) over looks
    between, there = fitted - fitted[reference], stage - stage[reference]
    worth = float(between @ there / max(between @ between, 1e-18))
    return worth if worth > 0 else None


def _order_noise(looks: Sequence[Simulation], trained: Sequence[Simulation], reference: int) -> tuple[FloatArray, ...]:
    """By look, what another order of the data changes of one probe's losses, (E,) nats, as the mixture trained twice shows.

    Pooled over evaluation sets and looks as a share of what mixtures change of a loss.
    """
    spreads = [np.maximum(np.ptp(look.losses, axis=0), 1e-12) for look in looks]
    squares = [
        (_on_same(look, again) - look.losses[reference]) ** 2 / 2 / spread**2
        for look, again, spread in zip(looks, trained, spreads, strict=True)
    ]
    seen = np.concatenate(squares)
    share = np.sqrt((seen.sum() + STRENGTH * EXPECTED_NOISE**2) / (len(seen) + STRENGTH))
    return tuple(share * spread for spread in spreads)


def _on_same(look: Simulation, again: Simulation) -> FloatArray:
    """Losses (E,) of the first of the probes trained again, on the sequences of an earlier look."""
    strides = [look.fidelity.stride(len(count)) for count in again.tokens]
    pairs = zip(again.nll, again.tokens, strides, strict=True)
    return np.array([sums[0, ::stride].sum() / count[::stride].sum() for sums, count, stride in pairs])


def _related(noise: FloatArray, settings: SolveSettings) -> float:
    """Standard deviation of the objective by the order of the data, nats."""
    apart = objective_error(noise, settings)
    if settings.objective == "worst_case":
        return apart
    together = float(settings.weights(len(noise)) @ noise)
    return float(np.sqrt((1 - RELATED) * apart**2 + RELATED * together**2))


def _unseen(fitted: Simulation, trained: Simulation) -> list[npt.NDArray[np.bool_]]:
    """By set, which of all sequences the law was not fitted to; all where there are no others."""
    chosen = []
    for few, every in zip(fitted.tokens, trained.tokens, strict=True):
        kept = np.ones(len(every), dtype=bool)
        if len(few) < len(every):
            kept[:: fitted.fidelity.stride(len(every))] = False
        chosen.append(kept)
    return chosen


def _limits_broken(constraints: Constraints, trained: Simulation, row: int) -> tuple[str, ...]:
    """Evaluation sets on which a candidate's probe loses more against the current model, on the same sequences, than is allowed.

    What a probe loses on a domain is not multiplied as what it gains is: 25 optima of searches for targets that
    were called too harmful so, for 28 domains, kept every limit when they were trained in full (docs/experiments.md). The law's own
    upper end, by which the optimum is found, speaks of the stage.
    """
    broken = []
    for m, limit in constraints.max_loss.items():
        e = trained.metrics.index(m)
        now = float(trained.baseline[e])
        if float(trained.losses[row, e]) > limit * now / constraints.current_loss.get(m, now):
            broken.append(m)
    return tuple(broken)


def _trained(
    context: MethodContext, rows: dict[str, FloatArray], domains: tuple[str, ...], steps: int | None
) -> Simulation:
    """A look at a probe on each row of shares, in the order of the comparison, on all held-out sequences."""
    design = ProbeDesign(tuple(rows), domains, np.stack(list(rows.values())))
    points = [InterpolationWeights(design.probes, row) for row in np.eye(len(rows))]
    label = "verification" if steps is None else f"verification-at-{steps}"
    return context.simulate(design, points, label=label, fidelity=Fidelity(steps=steps, order=ORDER))
