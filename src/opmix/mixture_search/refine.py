"""Refining: the adapter trained on the proposal becomes a probe and the law is fitted again, until its error stops mattering."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix.methods.op_mix import OpMix
from opmix.methods.proxies import left_out_error
from opmix.mixing.design import StageDesign
from opmix.mixing.log_linear import LogLinearLaw
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture
from opmix.mixing.paired import gain_probability, loss_difference_error, objective_error, objective_values
from opmix.mixing.verification import DirectPoint, Measured, extend, padded
from opmix.mixture_search.reload import LoadedSearch, reference_of
from opmix.protocols.mixing_method import LawProposal, Simulation

NEIGHBOURS = 4
"""Fitted points, the nearest in mixture, that every new probe is also interpolated half-way with."""


@dataclass(frozen=True)
class _State:
    """The search as it stands: design, what was simulated, and the answer."""

    design: StageDesign
    simulated: Simulation
    proposal: LawProposal

    @property
    def optimum(self) -> Mixture:
        return self.proposal.verdict.optimum.mixture


def refined(
    found: LoadedSearch, proposal: DirectPoint, measured: Measured, tolerance: float, *, max_rounds: int
) -> dict[str, Any]:
    """Refine a verified search.

    Stops where the new law promises no more than the tolerance over the last mixture that was trained directly, or at the cap.

    Args:
        found: The search.
        proposal: As it was trained directly; the first new probe.
        measured: What direct training says of the law.
        tolerance: Error that the decision counts as noise, nats.
        max_rounds: Directly trained mixtures at most, the proposal included.

    Returns:
        Rounds, reason, and the recommended mixture: the best one measured, if it is better than the mixture in use as surely as the
        decision asks, else that one. For `verification.json`.
    """
    state = _State(found.design, found.simulated, found.proposal)
    if not isinstance(found.proposal.fit.law, LogLinearLaw):
        reason = "not refined: nothing was interpolated, and the search itself trained and measured its candidates"
        return {"rounds": [], "reason": reason, "mixture": dict(found.recommended)}
    direct = {proposal.name: Mixture.of(proposal.mixture)}
    rounds: list[dict[str, Any]] = []
    if measured.regret_bound <= tolerance:
        reason = (
            f"not needed: the error can cost {measured.regret_bound:.4f} nats, within the tolerance of {tolerance:.4f}"
        )
        return _answer(found, state, direct, rounds, reason)
    reason = f"stopped at the cap of {max_rounds} rounds before it settled; raise the cap, or keep what you have"
    for number in range(1, max_rounds + 1):
        name, last = next(reversed(direct.items()))
        state = _with_vertex(found, state, name, last, number)
        law, settings = state.proposal.fit.law, state.proposal.verdict.settings
        now, then = objective_values(law.predict(np.stack([state.optimum.weights, last.weights])), settings)
        promised = float(then - now)
        rounds.append(
            {
                "added": name,
                "mixture": dict(last),
                "optimum": dict(state.optimum),
                "promised": promised,
                "law_error": left_out_error(state.proposal.fit),
                "decision": state.proposal.verdict.decision.reason,
            }
        )
        if promised <= tolerance:
            reason = (
                f"settled after {number} round(s): the refined law promises {promised:+.4f} nats over the last mixture "
                "trained "
                f"directly, within the tolerance of {tolerance:.4f}"
            )
            break
        if number < max_rounds:
            direct[f"refined-{number}"] = state.optimum
    return _answer(found, state, direct, rounds, reason)


def _with_vertex(found: LoadedSearch, state: _State, name: str, mixture: Mixture, number: int) -> _State:
    """One more probe: evaluated alone and half-way to its nearest fitted points, then everything fitted and solved again."""
    old = state.design
    probes = extend(old.probes, [name], [mixture])
    points = [padded(w, probes) for w in old.points]
    vertex = np.eye(len(probes.probes))[-1]
    fitted = np.flatnonzero(old.fitted)
    near = fitted[np.argsort(np.sum((old.mixtures[fitted] - mixture.weights) ** 2, axis=1))[:NEIGHBOURS]]
    new = [
        InterpolationWeights(probes.probes, w) for w in (vertex, *(0.5 * (vertex + points[i].weights) for i in near))
    ]
    made = found.context.simulate(probes, new, label=f"refine-{number}", fidelity=state.simulated.fidelity)
    design = replace(
        old,
        probes=probes,
        points=(*points, *new),
        names=(*old.names, f"probe {name}", *(f"{name} with {old.names[i]}" for i in near)),
        kinds=(*old.kinds, "probe", *["proxy"] * len(near)),
        fitted=(*old.fitted, *[True] * len(new)),
    )
    simulated = replace(
        state.simulated,
        losses=np.concatenate([state.simulated.losses, made.losses]),
        standard_errors=np.concatenate([state.simulated.standard_errors, made.standard_errors]),
        nll=tuple(np.concatenate(both) for both in zip(state.simulated.nll, made.nll, strict=True)),
        gram=made.gram,
    )
    outcome = OpMix(huber_delta=found.context.config.huber_delta).outcome(found.context, design, simulated)
    return _State(design, simulated, outcome.proposal)


def _answer(
    found: LoadedSearch, state: _State, direct: dict[str, Mixture], rounds: list[dict[str, Any]], reason: str
) -> dict[str, Any]:
    """The best directly trained mixture against the mixture in use, where that has a probe."""
    settings, rule = found.proposal.verdict.settings, found.proposal.verdict.decision_settings
    rows = [i for i, name in enumerate(state.design.names) if name.removeprefix("probe ") in direct]
    content: dict[str, Any] = {"rounds": rounds, "reason": reason}
    if not rows:
        return {**content, "mixture": dict(found.recommended)}
    best = rows[int(objective_values(state.simulated.losses[rows], settings).argmin())]
    mixture = state.design.mixtures[best]
    reference = reference_of(found)
    if reference in state.design.names:
        kept = state.design.names.index(reference)
        gain, error = _gain(state.simulated, kept, best, settings)
        sure = gain_probability(gain, error, rule.min_gain)
        content |= {"gain": gain, "standard_error": error, "probability": sure}
        if not sure >= rule.asked:  # unknown, NaN, is not sure
            mixture = state.design.mixtures[kept]
    names = state.design.probes.domains
    return {**content, "best": state.design.names[best], "mixture": dict(zip(names, map(float, mixture), strict=True))}


def _gain(simulated: Simulation, kept: int, best: int, settings: Any) -> tuple[float, float]:
    values: FloatArray = objective_values(simulated.losses[[kept, best]], settings)
    errors = loss_difference_error(simulated.nll, simulated.tokens, kept, best)
    return float(values[0] - values[1]), objective_error(errors, settings)
