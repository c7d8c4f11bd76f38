"""Confidence intervals of shares."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson(right: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: right near 0 and 1 too, where the plain one is empty.

    Args:
        right: Successes.
        total: Trials, at least 1.
        level: Confidence, in (0, 1).

    Examples:
        >>> [round(x, 3) for x in wilson(0, 10)], [round(x, 3) for x in wilson(8, 10)]
        ([0.0, 0.278], [0.49, 0.943])
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = right / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
