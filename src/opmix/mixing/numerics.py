"""A few functions of scipy, and of numpy those that load its masked arrays: importing either takes longer than a small fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def quantiles(values: FloatArray, shares: Sequence[float]) -> FloatArray:
    """`np.quantile(values, shares, axis=0)` to the bit: values (N, ...), shares (S,) in [0, 1], result (S, ...)."""
    last = len(values) - 1
    place = last * np.asarray(shares)
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, last)
    ordered = np.partition(values, [0, *below.tolist(), *above.tolist(), last], axis=0)
    weight = (place - below).reshape(-1, *(1,) * (values.ndim - 1))
    low, step = ordered[below], ordered[above] - ordered[below]
    found = np.where(weight < 0.5, low + step * weight, ordered[above] - step * (1 - weight))
    told: FloatArray = np.where(np.isnan(ordered[-1]), np.nan, found)
    return told


def median(values: FloatArray) -> float:
    """`np.median` of (N,) without NaN, to the bit."""
    middle = [(len(values) - 1) // 2, len(values) // 2]
    return float(np.partition(values, middle)[middle[0] : middle[1] + 1].mean())


def distinct_rows(table: FloatArray) -> int:
    """How many rows of (N, D) differ, to nine decimals."""
    return len(set(map(tuple, np.round(table, 9).tolist())))


def _ranks(values: FloatArray) -> FloatArray:
    """1 for the smallest; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks
