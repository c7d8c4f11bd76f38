"""Two accounts of one gain: what the law foretells, less what choosing by it flatters, and what trained probes measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix.mixing.decision import Verdict
from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import objective_values
from opmix.protocols.law import MixingLaw


@dataclass(frozen=True)
class Estimate:
    """A gain and its standard error, nats."""

    gain: float
    error: float
    sign_error: float | None = None
    """What its sign has to be judged by, where accounts differ about its size alone; None: `error`."""

    @property
    def for_sign(self) -> float:
        """Standard error by which the sign is judged."""
        return self.error if self.sign_error is None else self.sign_error


def foretold(verdict: Verdict, law: MixingLaw, toward: float = 1.0, *, underrated: float = 1.0) -> Estimate:
    """The law's gain of the mixture `toward` of the way from the reference to the optimum, without the flattery of choosing it.

    The optimum was chosen by the numbers that then foretell its gain, so it looks better than it is. Every drawn law has an optimum of its
    own, which flatters it likewise, and the law it was drawn around says what that one is really worth: the bootstrap's estimate of
    optimism (Efron, Estimating the Error Rate of a Prediction Rule, 1983). A discrepancy between probes and stage scales all gains alike
    and is left out of the error.

    Args:
        verdict: What the law says.
        law: The law.
        toward: Part of the way.
        underrated: Times the noise that the law was fitted with, as other evidence has it: flattery and error grow as much.
    """
    settings, draws, kept = verdict.settings, verdict.draws, verdict.optima.kept
    reference = next(a.mixture for a in verdict.alternatives if a.name == verdict.decision.reference).weights

    def value(mixtures: FloatArray) -> FloatArray:
        return objective_values(np.minimum(law.predict(mixtures), draws.ceiling), settings)

    chosen = reference + toward * (verdict.optima.optima - reference)
    pairs = np.stack([np.broadcast_to(reference, chosen.shape), chosen], axis=1)
    drawn = objective_values(draws.take(kept).predict_each(pairs), settings)  # (B', 2)
    flattery = (drawn[:, 0] - drawn[:, 1]) / draws.scale[kept] - (value(reference[None]) - value(chosen))
    here = value(np.stack([reference, reference + toward * (verdict.optimum.mixture.weights - reference)]))
    flattered, error = underrated * max(flattery.mean(), 0.0), underrated * flattery.std()
    return Estimate(float(here[0] - here[1] - flattered), float(error))


def pooled(accounts: Sequence[Estimate]) -> Estimate:
    """The mean by precision; where accounts disagree by more than their errors allow, its error grows as much (Birge, 1932).

    Two accounts that are both sure of a gain and disagree about its size leave no doubt of the gain: the error of the sign grows only
    where they disagree about that. An unknown error (NaN) leaves all unknown.

    Examples:
        >>> apart, larger = pooled([Estimate(1.0, 0.2), Estimate(0.0, 0.2)]), pooled([Estimate(1.5, 0.2), Estimate(0.5, 0.2)])
        >>> [round(e, 3) for e in (apart.error, apart.for_sign, larger.error, larger.for_sign)]
        [0.5, 0.5, 0.5, 0.141]
    """
    gains, errors = (np.array(column) for column in zip(*((a.gain, a.error) for a in accounts), strict=True))
    weights = np.maximum(errors, 1e-9) ** -2
    mean = float(gains @ weights / weights.sum())
    apart = float((gains - mean) ** 2 @ weights) / max(len(gains) - 1, 1)
    agreed = float(weights.sum() ** -0.5)
    error = float(agreed * max(1.0, np.sqrt(apart)))
    return Estimate(mean, error, agreed if np.all(gains > 0) or np.all(gains < 0) else error)
