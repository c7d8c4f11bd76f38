"""Arithmetic that mixers share: weights over domains as arrays, the length of a segment, states as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.online_mixer import MixerSegment

_SMALLEST = 1e-12
"""A weight below it counts as that: multiplicative updates could not bring it back."""


def interval(every: int | None, total_steps: int, parts: int = 20) -> int:
    """Optimizer steps between decisions: `every`, else a `parts`-th of the run, at least one.

    Raises:
        ConfigError: `every` is not positive.
    """
    if every is not None and every < 1:
        raise ConfigError(f"every is {every}; expected optimizer steps between decisions, at least 1")
    return every or max(1, total_steps // parts)


def listed(values: npt.ArrayLike) -> Any:
    """Arrays as lists, of any depth."""
    return np.asarray(values, dtype=np.float64).tolist()


def uniform(num: int) -> FloatArray:
    """The centre of the simplex, (D,)."""
    return np.full(num, 1 / num)


def exponentiated(weights: npt.ArrayLike, scores: npt.ArrayLike) -> FloatArray:
    """`weights * exp(scores)`, normalised, (D,): one step of exponentiated gradient.

    Examples:
        >>> exponentiated([0.5, 0.5], [np.log(3), 0]).tolist()
        [0.75, 0.25]
    """
    logs = np.log(np.maximum(np.asarray(weights, dtype=np.float64), _SMALLEST)) + np.asarray(scores, dtype=np.float64)
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def smoothed(weights: FloatArray, share: float) -> FloatArray:
    """`share` of it spread evenly, (D,)."""
    return np.asarray((1 - share) * weights + share / len(weights))


def at_least(weights: FloatArray, floor: float) -> FloatArray:
    """Raise weights to `floor` (at most 1/D) at the cost of the others, in proportion, (D,).

    Examples:
        >>> at_least(np.array([0.9, 0.1, 0.0]), 0.1).round(3).tolist()
        [0.8, 0.1, 0.1]
    """
    floor = min(floor, 1 / len(weights))
    low = weights < floor
    while True:
        rest = weights[~low].sum()
        raised = np.where(low, floor, weights * (1 - floor * low.sum()) / (rest if rest > 0 else 1.0))
        if not (more := (raised < floor - 1e-15) & ~low).any():
            return np.asarray(raised / raised.sum())
        low |= more


def told(values: FloatArray, last: npt.ArrayLike) -> FloatArray:
    """Values, and the last known ones where a domain was not seen (NaN), (D,)."""
    return np.where(np.isnan(values), np.asarray(last, dtype=np.float64), values)


def segment(state: Mapping[str, Any], steps: int | None = None) -> MixerSegment:
    """`state["weights"]` over `state["domains"]`, for `state["every"]` steps where no other number is given."""
    return MixerSegment(Mixture(state["domains"], state["weights"]), steps or state["every"])
