"""Two models on the same items: what the one is ahead by, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from opmix.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    stderr: float | None
    """Standard error; None where it is not known."""
    interval: tuple[float, float] | None
    """95 %."""
    total: int | None
    """Items; None for what summarises several tasks."""
    higher_is_better: bool | None
    details: Mapping[str, int]
    """Counts worth knowing."""
    items: Mapping[int, float]
    """Value item by item; empty where the metric is no mean of such values."""

    def json(self) -> dict[str, Any]:
        """As a mapping, without the items."""
        return {key: value for key, value in asdict(self).items() if key != "items"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First model less second, on items that both have."""

    task: str
    metric: str
    difference: float
    interval: tuple[float, float] | None
    """95 %; None of a single item."""
    total: int
    p_value: float | None
    """McNemar's exact test, of metrics that are right or wrong; None of others."""

    def json(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


def paired_difference(first: TaskScore, second: TaskScore, *, level: float = 0.95) -> Difference:
    """Mean of the differences item by item.

    Right or wrong: the interval of Bonett and Price (2012), which holds with few items and few disagreements, and McNemar's
    exact test. Other values: Student's t interval.

    Args:
        first: Of the model in question.
        second: Of the other, same task and metric.
        level: Of the interval.

    Raises:
        DataError: No item that both have.
    """
    common = sorted(first.items.keys() & second.items.keys())
    if not common:
        raise DataError(
            f"task {first.task!r}, {first.metric}: the models share no item; expected the same items scored for both"
        )
    a, b = (np.array([score.items[i] for i in common]) for score in (first, second))
    n, mean, p_value = len(common), float(np.mean(a - b)), None
    interval: tuple[float, float] | None = None
    if binary(a) and binary(b):
        ahead, behind = int(np.sum(a > b)), int(np.sum(a < b))
        interval = bonett_price(ahead, behind, n, level=level)
        p_value = mcnemar(ahead, behind)
    elif n > 1:
        from scipy.special import stdtrit  # scipy.stats takes a second to import

        half = float(stdtrit(n - 1, (1 + level) / 2) * np.std(a - b, ddof=1) / sqrt(n))
        interval = (mean - half, mean + half)
    return Difference(
        task=first.task, metric=first.metric, difference=mean, interval=interval, total=n, p_value=p_value
    )


def mcnemar(ahead: int, behind: int) -> float:
    """Probability that as uneven a split comes of items that either model is as likely to have right (exact, both sides).

    Examples:
        >>> round(mcnemar(10, 2), 4)
        0.0386
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(ahead, behind), ahead + behind, 0.5)))


def binary(values: Any) -> bool:
    """Whether all are 0 or 1."""
    return bool(np.isin(values, (0, 1)).all())


def bonett_price(ahead: int, behind: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of two shares on the same items (Bonett and Price 2012).

    Args:
        ahead: Items that only the first has right.
        behind: Items that only the second has right.
        total: Items, at least 1.
        level: Confidence, in (0, 1).

    Examples:
        >>> [round(x, 3) for x in bonett_price(10, 2, 40)]
        [0.026, 0.355]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, q = (ahead + 1) / (total + 2), (behind + 1) / (total + 2)
    half = z * sqrt((p + q - (p - q) ** 2) / (total + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)
