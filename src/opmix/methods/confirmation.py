"""A move held against a probe that was really trained on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opmix.methods.outcome import SearchOutcome
from opmix.mixing.confirm import confirm
from opmix.mixing.mixture import InterpolationWeights, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.protocols.mixing_method import LawProposal, MethodContext


def confirmed(context: MethodContext, outcome: SearchOutcome) -> LawProposal:
    """A move held against one probe trained on the optimum, where a probe was trained on the mixture in use.

    Averaged adapters make small shares look cheap (docs/experiments.md); a probe that really saw the optimum does not.
    """
    proposal, simulated, probes = outcome.proposal, outcome.simulated, outcome.design.probes
    verdict = proposal.verdict
    in_use = [i for i, row in enumerate(probes.R) if np.allclose(row, context.problem.current.weights, atol=1e-9)]
    allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
    if (
        verdict.decision.action == "keep" or not in_use or not allowed
    ):  # no move, nothing to hold it against or go back to
        return proposal
    probe = ProbeDesign(("proposal",), probes.domains, verdict.optimum.mixture.weights[None])
    alone = InterpolationWeights(("proposal",), [1.0])
    trained = context.simulate(probe, [alone], label="verification", fidelity=simulated.fidelity)
    losses = np.stack([simulated.losses[in_use[0]], trained.losses[0]])
    rows = [np.stack([kept[in_use[0]], moved[0]]) for kept, moved in zip(simulated.nll, trained.nll, strict=True)]
    kept_value, moved_value = objective_values(losses, verdict.settings)
    error = objective_error(loss_difference_error(rows, simulated.tokens, 0, 1), verdict.settings)
    verdict = confirm(verdict, float(kept_value - moved_value), error)
    return replace(proposal, verdict=verdict, mixture=verdict.mixture)
