"""A decision on trained evidence: probes on the optimum and half-way to it against the probe of the mixture in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opmix.methods.outcome import SearchOutcome
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import confirm, surely
from opmix.mixing.effective_tokens_fit import Discrepancy
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.solver import SolveSettings
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import Fidelity, LawProposal, MethodContext, Simulation

SAME = 1e-3
"""Shares that differ by less are one mixture."""
WORTH_A_SECOND_LOOK = 0.5
"""Probability of a gain from which a candidate that does not convince is trained once more, with the data in another order."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Probes on the same unseen held-out sequences, the mixture in use first. K + 1 probes, E evaluation sets."""

    nll: tuple[FloatArray, ...]  # per evaluation set (K + 1, S_e), summed nats
    tokens: tuple[FloatArray, ...]  # per evaluation set (S_e,)
    settings: SolveSettings

    @classmethod
    def of(cls, fitted: Simulation, trained: Simulation, settings: SolveSettings) -> Compared:
        """Of the sequences that the law was not fitted to: those that chose the optimum like it by chance too."""
        unseen = _unseen(fitted, trained)
        nll = tuple(sums[:, kept] for sums, kept in zip(trained.nll, unseen, strict=True))
        tokens = tuple(count[kept] for count, kept in zip(trained.tokens, unseen, strict=True))
        return cls(nll=nll, tokens=tokens, settings=settings)

    @property
    def losses(self) -> FloatArray:
        """(K + 1, E) nats per token."""
        return np.stack([sums.sum(axis=1) / n.sum() for sums, n in zip(self.nll, self.tokens, strict=True)], axis=1)

    @property
    def values(self) -> FloatArray:
        """The objective, (K + 1,)."""
        return objective_values(self.losses, self.settings)

    @property
    def gains(self) -> FloatArray:
        """Of each candidate over the mixture in use, (K,) nats."""
        return self.values[0] - self.values[1:]

    def error(self, candidate: int) -> float:
        """Standard error of one gain over held-out sequences."""
        return objective_error(loss_difference_error(self.nll, self.tokens, 0, 1 + candidate), self.settings)

    def with_another(self, best: int, again: Compared) -> Compared:
        """The mixture in use and candidate `best`, each the mean of two probes."""
        pairs = zip(self.nll, again.nll, strict=True)
        return replace(self, nll=tuple((sums[[0, 1 + best]] + other) / 2 for sums, other in pairs))


def best_measured(
    context: MethodContext, outcome: SearchOutcome, discrepancy: Discrepancy | None = None
) -> LawProposal:
    """Train probes on the optimum and on its half-way to the mixture in use; the best that was measured wins.

    "Keep" only where the mixture in use is best, or level: nothing beats its own probe as surely as the settings ask. The error of a
    measured gain counts sequences and what another order of the data would change; its probability counts that two were tried. A
    candidate that is likelier better than not, and not surely, is trained once more in another order, and so is the mixture in use: the
    means decide, and that there were two looks counts as one more try. A candidate whose probe breaks a loss limit, or will in the stage
    by what a measured nat is worth there (`discrepancy`), is out.
    """
    proposal, probes = outcome.proposal, outcome.design.probes
    verdict, current = proposal.verdict, context.stage.current
    in_use = [i for i, row in enumerate(probes.R) if np.allclose(row, current.weights, atol=1e-9)]
    allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
    optimum = verdict.optimum.mixture
    if not in_use or not allowed or np.allclose(optimum.weights, current.weights, atol=SAME):
        return proposal
    tried = {"proposal": optimum, "halfway": Mixture(optimum.names, (optimum.weights + current.weights) / 2)}
    reference, rows = probes.probes[in_use[0]], {name: mixture.weights for name, mixture in tried.items()}
    trained = _trained(context, {reference: probes.R[in_use[0]], **rows}, probes.domains)
    found = Compared.of(outcome.simulated, trained, verdict.settings)
    at_current = dict(zip(trained.metrics, proposal.fit.law.predict(current.weights)[0], strict=True))
    factor = (discrepancy or Discrepancy()).factor
    broken = [_limits_broken(verdict.constraints, trained, 1 + i, at_current, factor) for i in range(len(tried))]
    best = int(np.argmax(np.where([bool(b) for b in broken], -np.inf, found.gains)))
    noise = objective_error(_between_probes(proposal.fit, len(probes.R)), verdict.settings)
    order = np.sqrt(2) * max(noise, _scatter(found))
    error, count = float(np.hypot(found.error(best), order)), len(tried) - sum(map(bool, broken))
    gain, looks = float(found.gains[best]) if count else -np.inf, 1
    name, rule = list(tried)[best], verdict.decision_settings
    if count and WORTH_A_SECOND_LOOK <= surely(gain, error, rule, tries=count) < rule.confidence:
        pair = {f"{reference}-again": probes.R[in_use[0]], f"{name}-again": rows[name]}
        again = _trained(context, pair, probes.domains, order=1)
        both = found.with_another(best, Compared.of(outcome.simulated, again, verdict.settings))
        gain, error = float(both.gains[0]), float(np.hypot(both.error(0), order / np.sqrt(2)))
        looks, count = 2, count + 1
    verdict = confirm(verdict, gain, error, tried[name], tries=count, probes=looks)
    candidates = [
        {"name": n, "mixture": dict(m), "measured_gain": float(g), "breaks": list(limits)}
        for (n, m), g, limits in zip(tried.items(), found.gains, broken, strict=True)
    ]
    if looks > 1:
        candidates[best]["measured_again"] = gain
    made = {**proposal.evidence, "candidates": candidates}
    return replace(proposal, verdict=verdict, mixture=verdict.mixture, evidence=made)


def _scatter(found: Compared) -> float:
    """Standard deviation of one probe's objective by what the mixture in use, the optimum and their half-way (rows) leave of a line.

    Losses of mixtures between two are below the line between theirs (convexity), and little below; the rest is the probes' own noise.
    Sets are taken as independent or as one, whichever is worse.
    """
    bends = [np.array([-0.5, -0.5, 1.0]) @ part / np.sqrt(1.5) for part in (found.losses, found.values)]
    return max(objective_error(np.abs(bends[0]), found.settings), float(np.sqrt(2) * max(bends[1], 0.0)))


def _unseen(fitted: Simulation, trained: Simulation) -> list[npt.NDArray[np.bool_]]:
    """By set, which of all sequences the law was not fitted to; all where there are no others."""
    chosen = []
    for few, every in zip(fitted.tokens, trained.tokens, strict=True):
        kept = np.ones(len(every), dtype=bool)
        if len(few) < len(every):
            kept[:: fitted.fidelity.stride(len(every))] = False
        chosen.append(kept)
    return chosen


def _limits_broken(
    constraints: Constraints, trained: Simulation, row: int, at_current: Mapping[str, float], factor: float
) -> tuple[str, ...]:
    """Evaluation sets on which a measured candidate loses more than is allowed, now or in the stage.

    Now: against the current model on the same sequences. In the stage: what the law foretells of the mixture in use (`at_current`), whose
    probe is the first row, and `factor` times what the candidate's probe is worse than that one.
    """
    broken = []
    for m, limit in constraints.max_loss.items():
        e = trained.metrics.index(m)
        now, got = float(trained.baseline[e]), float(trained.losses[row, e])
        allowed = limit * now / constraints.current_loss.get(m, now)
        staged = at_current[m] + factor * (got - float(trained.losses[0, e]))
        if got > allowed or staged > limit:
            broken.append(m)
    return tuple(broken)


def _trained(
    context: MethodContext, rows: dict[str, FloatArray], domains: tuple[str, ...], order: int = 0
) -> Simulation:
    """A probe on each row of shares, evaluated; one of the design is found, if its shares are the same to the last bit."""
    design = ProbeDesign(tuple(rows), domains, np.stack(list(rows.values())))
    points = [InterpolationWeights(design.probes, row) for row in np.eye(len(rows))]
    label = "verification" if order == 0 else "verification-again"
    return context.simulate(design, points, label=label, fidelity=Fidelity(order=order))


def _between_probes(fit: LawFit, count: int) -> FloatArray:
    """Standard deviation of one probe's losses by seed and order of the data, (E,) nats, as the law leaves it at the probes' ends.

    What all `count` probes have in common there (the law foretells their course too low or too high) changes no comparison of two.
    """
    rest = fit.losses[:count] - fit.fitted[:count]
    return np.asarray(np.std(rest, axis=0, ddof=1))
