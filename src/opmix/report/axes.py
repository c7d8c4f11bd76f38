"""Limits of a chart's axes, and the round numbers that stand beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from opmix.mixing.mixture import FloatArray


class Axis:
    """One direction: limits that are given, or those of the data with a margin, and what stands beside it."""

    def __init__(self) -> None:
        self.low, self.high, self.margin = math.inf, -math.inf, 0.05
        self.given: tuple[float, float] | None = None
        self.label, self.most = "", 7

    def holds(self, values: Iterable[float] | FloatArray) -> None:
        """Count values for the limits; those that are not finite do not."""
        finite = np.asarray(values, dtype=np.float64).ravel()
        finite = finite[np.isfinite(finite)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest number of the axis; 0 and 1 where nothing is known."""
        low, high = self.given or (self.low, self.high)
        if not low <= high:
            return 0.0, 1.0
        air = 0.0 if self.given else self.margin * (high - low)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            air = 0.05 * abs(low) or 0.05
        return low - air, high + air


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two, at most so many: 1, 2, 2.5 or 5 times a power of ten apart.

    Examples:
        >>> ticks(0.0, 1.0, 6), ticks(3.02, 3.37, 4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [3.1, 3.2, 3.3])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * m for m in (1, 2, 2.5, 5, 10, 20, 25)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(i * step, 12 - math.floor(math.log10(step))) + 0.0 for i in range(first, last + 1)]
    return []


def tick_labels(values: Sequence[float]) -> tuple[list[str], str]:
    """Numbers with the decimals that tell them apart, and a power of ten that all are multiplied by, or nothing.

    Examples:
        >>> tick_labels([0.0, 2.5e12, 5e12]), tick_labels([-0.1, 0.0])
        ((['0.0', '2.5', '5.0'], '1e12'), (['−0.1', '0.0'], ''))
    """
    largest = max(map(abs, values), default=0.0)
    power = math.floor(math.log10(largest)) if largest and not 1e-3 <= largest < 1e5 else 0
    scaled = [value / 10.0**power for value in values]
    decimals = next((d for d in range(12) if all(abs(round(v, d) - v) <= 1e-9 for v in scaled)), 12)
    return [f"{v:.{decimals}f}".replace("-", "−") for v in scaled], f"1e{power}" if power else ""
