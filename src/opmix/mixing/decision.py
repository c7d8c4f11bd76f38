"""From a fitted law to a recommendation: the optimum, its alternatives, and whether to move at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np

from opmix.errors import InfeasibleError, SolverError
from opmix.mixing.attainable import attainable_limits
from opmix.mixing.constraints import Constraints
from opmix.mixing.cover import Cover, misfit_near, outliers
from opmix.mixing.decided import Decision
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.paired import can_be_worst, objective_values
from opmix.mixing.posterior import MixtureDraws, percentiles, solve_draws
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.safe_limits import LossLimit, limits_at, solve_safely
from opmix.mixing.solver import Solution, solve
from opmix.protocols.law import LawDraws, LawFit, MixingLaw
from opmix.settings import Bounds, Inside, NotNegative, ReadAs, internal, number, settings

SURE, LIKELIER_THAN_NOT = 0.9, 0.5
"""Confidence that a move asks for between domains, and for targets: text that nobody trains on is hardly ever served best by the mixture
in use, and a move that gains it nothing loses it nothing either (docs/evidence.md, mixtures for targets)."""


@settings
class DecisionSettings:
    """When a predicted gain is believed."""

    confidence: Inside | None = None
    """Move only where the probability of a gain over the reference is at least this; None: 0.9, for targets 0.5."""
    min_gain: NotNegative = 0.0
    """Smallest expected gain worth a move, in nats."""
    interval_level: Inside = 0.9
    draws: Annotated[int, Bounds(gt=0, le=1_000_000), ReadAs(number)] = 200
    """Of the law's coefficients."""
    verify: bool = True
    """Before a move, train one probe on the optimum itself and let it object (where the reference has its own probe)."""
    prove_new: bool = False
    """Whether a new domain must prove that it helps; else it is left out only where the numbers say, as surely, that it harms."""
    seed: int = internal(default=0)

    @property
    def asked(self) -> float:
        """`confidence` where nothing is aimed at, in (0, 1)."""
        return SURE if self.confidence is None else self.confidence


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A mixture scored beside the proposal. Losses in nats per token; gains against the reference, positive is better."""

    name: str
    mixture: Mixture
    predicted: Mapping[str, float]
    objective: float
    gain: float
    gain_interval: tuple[float, float]
    feasible: bool
    note: str = ""
    measured: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Everything the numbers say; `mixture` is the recommendation."""

    mixture: Mixture
    optimum: Solution
    decision: Decision
    interval: Mapping[str, tuple[float, float]]
    alternatives: tuple[Alternative, ...]
    draws: LawDraws
    optima: MixtureDraws
    coordinates: Coordinates
    settings: SolveSettings
    constraints: Constraints
    decision_settings: DecisionSettings
    seconds: Mapping[str, float] = field(default_factory=dict)

    def limits(self, law: MixingLaw) -> tuple[LossLimit, ...]:
        """What is foretold of every limited loss at the recommended mixture."""
        return limits_at(self.mixture, law, self.draws, self.constraints)


_EXTRAPOLATED = "outside what the points cover: extrapolated"


def decide(
    fit: LawFit,
    *,
    candidates: Mapping[str, Mixture],
    reference: str,
    points: Sequence[str] = (),
    coordinates: Coordinates | None = None,
    settings: SolveSettings | None = None,
    constraints: Constraints | None = None,
    decision: DecisionSettings | None = None,
    noise: FloatArray | None = None,
    structural: float = 0.0,
    measured: Mapping[str, Mapping[str, float]] | None = None,
    notes: Mapping[str, str] | None = None,
    newcomers: bool = False,
    safe_limits: bool = False,
) -> Verdict:
    """Solve, score the alternatives on the law's posterior, and move only where the gain outweighs the noise.

    The gain of a draw is the drawn law's objective at the reference minus at the optimum, plus a normal error whose
    deviation joins the law's misfit of the objective near both ends and `structural`. So a predicted gain of the size of
    the law's own error is not acted on. A diverged run does not set that error, and is named. No gain counts for more than
    the points themselves differ by, and a reference that the points do not cover is kept: the law says nothing of it.

    Args:
        fit: The law.
        candidates: Named mixtures to score; must contain `reference`.
        reference: What "keep" means: the mixture in use now.
        points: Names of the fit's points, M; to name those that fit no law.
        coordinates: Directions the search could vary; None: all domains.
        settings: Objective, KL, prior.
        constraints: What the mixture must obey.
        decision: Confidence, draws, seed.
        noise: Evaluation noise per draw, (B, M, E); see `posterior.resampling_noise`.
        structural: Further standard deviation of a predicted difference of the objective, nats.
        measured: Losses measured directly at candidates (a probe trained on just that mixture).
        notes: Remarks by candidate.
        newcomers: The reference leaves out domains that somebody wants in. It is then "keep" that must be proven, unless the settings
            say otherwise (`DecisionSettings.prove_new`).
        safe_limits: Limits on losses hold at the upper end of the law's interval where any mixture keeps them so, not by its middle.

    Raises:
        InfeasibleError: The constraints contradict each other; of limits on losses it says the smallest that can be met.
    """
    settings, constraints = settings or SolveSettings(), constraints or Constraints()
    rule = decision or DecisionSettings()
    coordinates = coordinates or Coordinates.identity(fit.law.domains)
    optimum = _optimum(fit.law, coordinates, settings, constraints)
    draws = fit.draws(num_draws=rule.draws, seed=rule.seed, noise=noise)
    if safe_limits and constraints.max_loss:
        optimum = solve_safely(fit.law, draws, coordinates=coordinates, settings=settings, constraints=constraints)
    optima = solve_draws(draws, coordinates, settings, constraints, optimum.mixture)

    scored = {"proposal": optimum.mixture, **{name: m.on(fit.law.domains) for name, m in candidates.items()}}
    residuals = objective_residuals(fit.misfit, settings)
    ends = [misfit_near(scored[name].weights, fit.mixtures, residuals) for name in (reference, "proposal")]
    noise_sd = float(np.sqrt(ends[0] ** 2 + ends[1] ** 2 + structural**2))
    error = np.random.default_rng([rule.seed, 1]).standard_normal(len(draws)) * noise_sd
    foretold, gains = _foretold(fit, draws, scored, reference, error, settings, constraints, rule)
    cover, alternatives = Cover(fit.mixtures), []
    for told in foretold:
        remarks = [(notes or {}).get(told.name, ""), _EXTRAPOLATED if cover.outside(told.mixture.weights) else ""]
        note, found = "; ".join(filter(None, remarks)), (measured or {}).get(told.name)
        alternatives.append(replace(told, note=note, measured=found))
    strange = [points[i] if points else f"point {i + 1}" for i in outliers(residuals)]
    verdict = _judge(
        alternatives,
        reference,
        gains,
        noise_sd,
        rule,
        welcome=newcomers and not rule.prove_new,
        uncovered=cover.outside(scored[reference].weights),
    )
    if strange:
        verdict = replace(verdict, reason=f"{verdict.reason}; not counted, far from any law: {', '.join(strange)}")
    return Verdict(
        mixture=optimum.mixture if verdict.action == "move" else scored[reference],
        optimum=optimum,
        decision=verdict,
        interval=optima.interval(rule.interval_level),
        alternatives=tuple(alternatives),
        draws=draws,
        optima=optima,
        coordinates=coordinates,
        settings=settings,
        constraints=constraints,
        decision_settings=rule,
    )


def _optimum(law: MixingLaw, coordinates: Coordinates, settings: SolveSettings, constraints: Constraints) -> Solution:
    """The law's own; where no mixture keeps the constraints, the error says which limits on losses could be kept."""
    try:
        return solve(law, coordinates=coordinates, settings=settings, constraints=constraints)
    except InfeasibleError as stopped:
        raise InfeasibleError([*stopped.conflicts, *attainable_limits(law, coordinates, constraints)]) from stopped


def _foretold(
    fit: LawFit,
    draws: LawDraws,
    scored: Mapping[str, Mixture],
    reference: str,
    error: FloatArray,
    settings: SolveSettings,
    constraints: Constraints,
    rule: DecisionSettings,
) -> tuple[list[Alternative], FloatArray]:
    """What the law says of every mixture, and the first one's gain over the reference in every draw, `error` (B,) added, (B,).

    No gain is more than what the points themselves differ by.
    """
    P, where = np.array([m.weights for m in scored.values()]), list(scored).index(reference)
    drawn = objective_values(draws.predict(P), settings)  # (B, A)
    values = objective_values(np.minimum(fit.law.predict(P), draws.ceiling), settings)
    most = fit.most(lambda losses: objective_values(losses, settings))
    gains = np.minimum(drawn[:, [where]] - drawn, most)
    made = []
    for a, (name, mixture) in enumerate(scored.items()):
        told = np.minimum(fit.law.predict(mixture.weights)[0], draws.ceiling)
        predicted = dict(zip(fit.law.metrics, map(float, told), strict=True))
        same = bool(np.allclose(mixture.weights, P[where], atol=1e-9))
        made.append(
            Alternative(
                name=name,
                mixture=mixture,
                predicted=predicted,
                objective=float(values[a]),
                gain=float(min(values[where] - values[a], most)),
                gain_interval=percentiles(gains[:, a] if same else gains[:, a] + error, rule.interval_level),
                feasible=constraints.violation(mixture, predicted) <= 1e-6,
            )
        )
    return made, gains[:, 0] + error


def unsure(probability: float) -> str:
    """What is added to the reason of a move for less than is asked between domains."""
    return "" if probability >= SURE else "; a gain is likelier than not, and not sure"


def objective_residuals(residuals: FloatArray, settings: SolveSettings) -> FloatArray:
    """Law misfit of the objective at each point, (M,). The worst case takes the worst metric's."""
    if settings.objective == "worst_case":
        residuals = residuals[:, can_be_worst(settings, residuals.shape[1])]
        return residuals[np.arange(len(residuals)), np.abs(residuals).argmax(axis=1)]
    return residuals @ settings.weights(residuals.shape[1])


def _judge(
    alternatives: list[Alternative],
    reference: str,
    gains: FloatArray,
    noise: float,
    rule: DecisionSettings,
    *,
    welcome: bool,
    uncovered: float,
) -> Decision:
    proposal = alternatives[0]
    kept = next(a for a in alternatives if a.name == reference)
    probability = float(np.mean(gains > rule.min_gain))
    low, high = percentiles(gains, rule.interval_level)
    numbers = (
        f"predicted gain {proposal.gain:+.4f} nats over {reference} ({rule.interval_level:.0%} interval {low:+.4f} to "
        f"{high:+.4f}), "
        f"probability of a gain {probability:.0%}"
    )
    action: Literal["move", "keep"] = "move"
    same = bool(
        np.allclose(proposal.mixture.weights, kept.mixture.weights, atol=1e-3)
    )  # the optimum itself wants no more
    if not kept.feasible:
        reason = f"move: the {reference} mixture breaks the constraints; {numbers}"
    elif uncovered and not welcome:
        action = "keep"
        reason = (
            f"keep the {reference} mixture: it lies outside what the points cover (the nearest differs by "
            f"{uncovered:.2f} "
            "of all shares), so nothing is known of a gain over it"
        )
    elif probability >= rule.asked and proposal.gain > rule.min_gain:
        reason = f"move: {numbers}{unsure(probability)}"
    elif welcome and probability > 1 - (rule.asked if rule.asked > LIKELIER_THAN_NOT else SURE) and not same:
        reason = f"move: {numbers}; not sure enough that the new domain harms to leave it out"
    else:
        action = "keep"
        asked = f"below the {rule.asked:.0%} asked for (noise {noise:.4f} nats)"
        reason = f"keep the {reference} mixture: {numbers}, {asked}"
    if not np.isfinite(probability):
        raise SolverError(f"the law's posterior is not finite ({numbers}); look at the proxy table for outliers")
    return Decision(
        action=action,
        reason=reason,
        reference=reference,
        gain=proposal.gain,
        gain_interval=(low, high),
        probability=probability,
        confidence=rule.asked,
        noise=noise,
    )
