"""A few functions of scipy.special and scipy.stats, in numpy: importing those takes longer than a small fit."""

from __future__ import annotations

import math

import numpy as np

from opmix.mixing.mixture import FloatArray


def logsumexp(values: FloatArray, weights: FloatArray) -> FloatArray:
    """`log sum weights exp(values)` over the last axis, for weights >= 0 that are not all zero."""
    values = np.where(weights > 0, values, -np.inf)
    largest = values.max(axis=-1, keepdims=True)
    found: FloatArray = largest[..., 0] + np.log(np.exp(values - largest) @ weights)
    return found


def softmax(values: FloatArray) -> FloatArray:
    """`exp(values)`, scaled to add up to one."""
    lifted = np.exp(values - values.max())
    scaled: FloatArray = lifted / lifted.sum()
    return scaled


def normal_cdf(value: float) -> float:
    """Probability that a standard normal is below; NaN of NaN."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's rho; NaN-free: 0 where one side is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _ranks(values: FloatArray) -> FloatArray:
    """1 for the smallest; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks
