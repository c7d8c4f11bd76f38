r"""What a proposal may cost against the best mixture, by the law's own posterior; what an adaptive search stops by.

Draw b of the law has an optimum of its own, `p_b`. Had b been true, acting on the recommendation `p*` would have
cost `J_b(p*) - J_b(p_b) >= 0`, with `J` the objective and its KL term. The distribution over draws is the predicted regret. All losses are
those of probes as they are now, and short probes move losses by other amounts than the stage will; so regret is told as a share of what
mixtures make of a difference at all among the points that were evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.mixing.decision import Verdict
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.paired import objective_values
from opmix.mixing.posterior import MixtureDraws, percentiles, solve_draws
from opmix.mixing.problem import SolveSettings
from opmix.protocols.law import LawDraws, LawFit

NOISE_DRAWS = 50
"""Draws that tell what evaluation noise alone leaves; each is one more solve."""


@dataclass(frozen=True, kw_only=True)
class PredictedRegret:
    """Expected objective of the recommendation minus the expected best; shares of `spread`."""

    mean: float
    interval: tuple[float, float]
    noise: float
    """Mean regret if evaluating on few sequences were the only error."""
    spread: float
    """Largest minus smallest objective among the points the law was fitted to, nats."""


def predicted_regret(verdict: Verdict, fit: LawFit, noise: FloatArray | None = None) -> PredictedRegret:
    """Regret of a verdict's recommendation, be it the optimum or the mixture in use.

    Args:
        verdict: Optimum and draws.
        fit: The law they come from.
        noise: As in `LawFit.draws`; None: there is no evaluation noise.
    """
    observed = objective_values(fit.losses, verdict.settings)
    spread = max(float(np.ptp(observed)), 1e-12)
    draws = verdict.draws
    regrets = _regrets(verdict, draws, verdict.optima)
    alone = 0.0
    if noise is not None:
        few = fit.exact().draws(num_draws=min(NOISE_DRAWS, len(noise)), noise=noise[:NOISE_DRAWS])
        optima = solve_draws(few, verdict.coordinates, verdict.settings, verdict.constraints)
        alone = float(_regrets(verdict, few, optima).mean())
    low, high = percentiles(regrets / spread, verdict.decision_settings.interval_level)
    return PredictedRegret(
        mean=float(regrets.mean()) / spread, interval=(low, high), noise=alone / spread, spread=spread
    )


def change(verdict: Verdict, fit: LawFit, before: Mixture) -> float:
    """What the law would have an earlier recommendation cost over this one, nats, KL included; 0 where it would cost less."""
    P = np.stack([before.weights, verdict.mixture.weights])
    losses = np.minimum(fit.law.predict(P), verdict.draws.ceiling)
    values = objective_values(losses, verdict.settings) + _kl(P, verdict.settings)
    return max(0.0, float(values[0] - values[1]))


def _regrets(verdict: Verdict, draws: LawDraws, own: MixtureDraws) -> FloatArray:
    """`J_b(p*) - J_b(p_b)` of every draw that has an optimum, (B',) nats."""
    proposal = verdict.mixture.weights
    pairs = np.stack([np.broadcast_to(proposal, own.optima.shape), own.optima], axis=1)  # (B', 2, D)
    values = objective_values(draws.take(own.kept).predict_each(pairs), verdict.settings) + _kl(pairs, verdict.settings)
    return np.maximum(values[:, 0] - values[:, 1], 0.0)


def _kl(mixtures: FloatArray, settings: SolveSettings) -> FloatArray:
    """`kl * KL(p || prior)` along the last axis."""
    num = mixtures.shape[-1]
    prior = np.full(num, 1 / num) if settings.prior is None else settings.prior.weights
    ratio = np.log(np.maximum(mixtures, 1e-300) / np.maximum(prior, 1e-300))
    total: FloatArray = settings.kl * np.sum(np.where(mixtures > 0, mixtures * ratio, 0.0), axis=-1)
    return total
