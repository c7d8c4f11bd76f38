"""The one statistic behind every gate: how far apart two models' losses are, and how well that is known.

Losses are `sum of nats / sum of tokens` over held-out sequences. Sequences of unequal length do not count alike, so the error is that of
a ratio estimator: sequences are the sample, tokens their weights (Cochran, Sampling Techniques, section 2.11). Where fewer than two
sequences have scored tokens the error is unknown, and NaN says so: nothing may be concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import logsumexp, normal_cdf
from opmix.mixing.problem import SolveSettings


def loss_errors(nll: Sequence[FloatArray], tokens: Sequence[FloatArray]) -> FloatArray:
    """Standard errors of losses over sequences, (M, E) nats per token; NaN with fewer than two scored sequences.

    Args:
        nll: Per evaluation set, summed nats of each sequence under each model, (M, S_e).
        tokens: Per evaluation set, scored tokens of each sequence, (S_e,).
    """
    return np.stack([_ratio_errors(sums, counts) for sums, counts in zip(nll, tokens, strict=True)], axis=1)


def loss_difference_error(nll: Sequence[FloatArray], tokens: Sequence[FloatArray], a: int, b: int) -> FloatArray:
    """Standard error of the loss difference of models a and b, paired over sequences, (E,) nats per token.

    Args:
        nll: Per evaluation set, summed nats of each sequence under each model, (M, S_e).
        tokens: Per evaluation set, scored tokens of each sequence, (S_e,).
        a: Row of one model.
        b: Row of the other.

    Examples:
        >>> nll = [np.array([[20.0, 31.0], [21.0, 30.0]])]  # one set, two models, two sequences
        >>> loss_difference_error(nll, [np.array([10.0, 10.0])], 0, 1)
        array([0.1])
    """
    return loss_errors([sums[[a]] - sums[[b]] for sums in nll], tokens)[0]


def _ratio_errors(sums: FloatArray, tokens: FloatArray) -> FloatArray:
    """Standard error of `sums.sum() / tokens.sum()`, (M,)."""
    used = tokens > 0
    count = int(used.sum())
    if count < 2:
        return np.full(len(sums), np.nan)
    deviations = sums[:, used] - sums.sum(axis=1, keepdims=True) / tokens.sum() * tokens[used]
    return np.asarray(np.sqrt(count / (count - 1) * (deviations**2).sum(axis=1)) / tokens.sum())


def objective_values(losses: FloatArray, settings: SolveSettings) -> FloatArray:
    """The loss part of the objective, (...), of losses (..., E), nats."""
    if settings.objective == "worst_case":
        reference = 0.0 if settings.reference is None else settings.reference
        return np.asarray(np.max(losses - reference, axis=-1))
    if settings.objective == "perplexity":
        return np.asarray(logsumexp(losses, settings.weights(losses.shape[-1])))
    return np.asarray(losses @ settings.weights(losses.shape[-1]))


def objective_error(errors: FloatArray, settings: SolveSettings) -> float:
    """Standard error of an objective's difference from those of its losses (E,), nats; NaN where one that counts is unknown.

    Evaluation sets are independent samples. The worst case takes the largest error: which set is worst may change with the draw.
    """
    if settings.objective == "worst_case":
        return float(errors[can_be_worst(settings, len(errors))].max())
    weights = settings.weights(len(errors))
    counted = weights > 0
    return float(np.sqrt(np.sum((weights[counted] * errors[counted]) ** 2)))


def can_be_worst(settings: SolveSettings, num_metrics: int) -> FloatArray:
    """Which sets can be the worst, (E,)."""
    reference = settings.reference
    return np.ones(num_metrics, bool) if reference is None else np.isfinite(reference)


def gain_probability(gain: float, error: float, least: float = 0.0) -> float:
    """Probability that a measured gain is really above `least`, by its standard error; NaN where that is unknown."""
    return float(normal_cdf((gain - least) / max(error, 1e-12)))
