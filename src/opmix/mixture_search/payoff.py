"""After a search for targets: what every set pays, what each target alone would want, and which targets nothing can be told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from opmix.config import SearchConfig
from opmix.errors import SolverError
from opmix.mixing.decision import Verdict
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.paired import loss_errors
from opmix.mixing.posterior import percentiles
from opmix.mixing.safe_limits import limits_at, tightened
from opmix.mixing.solver import solve
from opmix.protocols.law import MixingLaw
from opmix.protocols.mixing_method import LawProposal, Simulation
from opmix.results.payoff import Alone, Change, Payoff, Silent

CHANCE = 0.05
"""Of a target that no probe changes to have a say all the same: its losses differ by noise alone."""
FEW = 6
"""Targets up to which the way between each and the others is followed; with more, only its end."""
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of one target, in the frontier between it and the others."""


def silent_targets(config: SearchConfig, simulated: Simulation) -> dict[str, Silent]:
    """Targets whose losses at the probes themselves do not stand out of held-out noise; none that `solve.weights` names.

    Where that would be all of them, none: something must be minimised, and the decision's own noise says keep.
    """
    from scipy.special import chdtri

    rows = [i for i, point in enumerate(simulated.points) if np.max(point.weights) == 1]
    if len(rows) < 2:
        return {}
    found = {}
    apart = [nll[rows] - nll[rows].mean(axis=0) for nll in simulated.nll]
    free = len(rows) - 1  # the mean over the probes is taken off, and with it a part of the noise
    noise = np.sqrt(np.sum(loss_errors(apart, simulated.tokens) ** 2, axis=0) / free)
    spread = simulated.losses[rows].std(axis=0, ddof=1)
    clear = np.sqrt(chdtri(free, CHANCE) / free)  # of spread / noise, were there nothing but noise
    for e, metric in enumerate(simulated.metrics):
        target = config.targets.get(metric)
        if target is None or not target.weight or metric in config.solve.weights:
            continue
        if np.isfinite(noise[e]) and spread[e] < clear * noise[e]:
            found[metric] = Silent(spread=float(spread[e]), noise=float(noise[e]))
    heard = [n for n, t in config.targets.items() if config.solve.weights.get(n, t.weight) and n not in found]
    return found if heard else {}


def payoff_of(proposal: LawProposal, targets: Sequence[str], silent: Mapping[str, Silent]) -> Payoff:
    """Changes from the mixture in use to the recommended one (where that is to keep: to the proposed one), and the targets' own optima."""
    verdict, law = proposal.verdict, proposal.fit.law
    moved = verdict.decision.action == "move"
    mixture = verdict.mixture if moved else verdict.optimum.mixture
    reference = next(a.mixture for a in verdict.alternatives if a.name == verdict.decision.reference)
    weights = verdict.settings.weights(len(law.metrics))
    return Payoff(
        reference=verdict.decision.reference,
        mixture=dict(mixture),
        changes=_changes(proposal, mixture, reference),
        targets=tuple(targets),
        weights=dict(zip(law.metrics, map(float, weights), strict=True)),
        alone={t: found for t in targets if (found := _alone(verdict, law, t, targets, reference)) is not None},
        silent=dict(silent),
    )


def _changes(proposal: LawProposal, mixture: Mixture, reference: Mixture) -> dict[str, Change]:
    verdict, law = proposal.verdict, proposal.fit.law
    at = law.predict(np.stack([mixture.weights, reference.weights]))
    drawn = verdict.draws.predict(np.stack([mixture.weights, reference.weights]))  # (B, 2, E)
    level = verdict.decision_settings.interval_level
    return {
        metric: Change(
            nats=float(at[0, e] - at[1, e]),
            interval=percentiles(drawn[:, 0, e] - drawn[:, 1, e], level),
            percent=float(100 * (at[0, e] - at[1, e]) / proposal.baseline[metric]),
        )
        for e, metric in enumerate(law.metrics)
    }


def _alone(verdict: Verdict, law: MixingLaw, target: str, targets: Sequence[str], reference: Mixture) -> Alone | None:
    """None where the solver cannot vouch for an answer."""
    others = [t for t in targets if t != target] or [m for m in law.metrics if m not in targets]
    own = np.array([float(m == target) for m in law.metrics])
    rest = np.array([float(m in others) for m in law.metrics]) / len(others)
    base = law.predict(reference.weights)[0]
    try:
        best = _solved(verdict, law, own)
        between = (0.0, *WEIGHTS) if len(targets) <= FEW else ()
        ends = [(w, _solved(verdict, law, w * own + (1 - w) * rest)) for w in between]
    except SolverError:
        return None
    change = law.predict(best.weights)[0] - base
    frontier = []
    for weight, mixture in (*ends, (1.0, best)):
        away = law.predict(mixture.weights)[0] - base
        frontier.append((weight, float(away @ own), float(away @ rest)))
    return Alone(
        mixture=dict(best),
        changes=dict(zip(law.metrics, map(float, change), strict=True)),
        frontier=tuple(frontier),
    )


def _solved(verdict: Verdict, law: MixingLaw, omega: FloatArray) -> Mixture:
    settings = replace(verdict.settings, objective="weighted", omega=omega)
    at = limits_at(verdict.optimum.mixture, law, verdict.draws, verdict.constraints)
    within = tightened(verdict.constraints, at)
    return solve(law, coordinates=verdict.coordinates, settings=settings, constraints=within).mixture
