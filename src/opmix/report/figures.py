"""Panels of a search: a law, losses along shares, predicted against observed.

Each panel is a chart of its own, so the page's grid can put three in a row on a laptop and one on a phone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.report.drawing import ACCENT, DASHED, DOTTED, INK, MUTED, SECOND, Anchor, Chart
from opmix.report.html import Html

MAX_POINTS = 300


@dataclass(frozen=True, eq=False)
class Points:
    """Simulated points of one panel. Losses in nats per token."""

    x: FloatArray
    loss: FloatArray
    error: FloatArray | None = None  # standard errors
    odd: npt.NDArray[np.bool_] | None = None  # not simulated as the others were; drawn hollow


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel: x, loss and the ends of its band."""

    x: FloatArray
    loss: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None
    label: str = ""


def law_panel(
    curve: Curve, points: Points | None, marks: Sequence[tuple[float, str]], *, xlabel: str, label: str
) -> Html:
    """A law along a line of mixtures: the curve, its band and the simulated points.

    Args:
        curve: The law; drawn dashed outside the simulated range.
        points: What it was fitted to.
        marks: Vertical lines with their names.
        xlabel: Below the axis.
        label: For screen readers.
    """
    chart = Chart()
    if curve.low is not None and curve.high is not None:
        chart.band(curve.x, curve.low, curve.high, colour=ACCENT, alpha=0.16)
    low, high = (points.x.min(), points.x.max()) if points is not None else (curve.x[0], curve.x[-1])
    inside = (curve.x >= low - 1e-9) & (curve.x <= high + 1e-9)
    chart.line(curve.x, curve.loss, colour=ACCENT, width=1.0, dashes=DASHED)
    chart.line(curve.x[inside], curve.loss[inside], colour=ACCENT, width=1.8)
    if points is not None:
        _scatter(chart, points)
    for at, name in marks:
        chart.upright(at, colour=MUTED, dashes=DOTTED)
        anchor: Anchor = "start" if at < 0.7 else "end"
        chart.words(name, at, None, colour=MUTED, anchor=anchor, level="below", moved=(3 if at < 0.7 else -3, 1))
    _limits(chart, curve.loss if points is None else np.concatenate([curve.loss, points.loss]))
    chart.x.label = xlabel
    return chart.svg(label)


def profile_panel(
    curves: Sequence[Curve], highlighted: Sequence[int], level: float, *, xlabel: str, label: str
) -> Html:
    """Loss as each coordinate's share changes: all in grey, the ones that matter named at their ends."""
    chart = Chart(right=0.74)
    for i, curve in enumerate(curves):
        if i not in highlighted:
            chart.line(curve.x, curve.loss, colour=MUTED, alpha=0.45)
    chart.across(level)
    for i in highlighted:
        curve, colour = curves[i], _colour(curves[i])
        if curve.low is not None and curve.high is not None:
            chart.band(curve.x, curve.low, curve.high, colour=colour, alpha=0.13)
        chart.line(curve.x, curve.loss, colour=colour, width=1.7)
    _limits(chart, np.concatenate([curve.loss for curve in curves]))
    chart.x.label = xlabel
    gap = 0.085 * float(np.diff(chart.y.limits)[0])
    heights = _apart([float(curves[i].loss[-1]) for i in highlighted], gap)
    for i, height in zip(highlighted, heights, strict=True):
        chart.beside(_short(curves[i].label), height, colour=_colour(curves[i]))
    return chart.svg(label)


def agreement_panel(
    predicted: FloatArray,
    observed: FloatArray,
    error: FloatArray | None,
    odd: npt.NDArray[np.bool_] | None = None,
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    zero: bool = False,
) -> Html:
    """Predicted against observed with the line on which they agree."""
    step = max(1, -(-len(predicted) // MAX_POINTS))
    x, y = predicted[::step], observed[::step]
    both = np.concatenate([x, y, [0.0]] if zero else [x, y])
    air = 0.06 * float(np.ptp(both)) or 0.01
    ends = (float(both.min()) - air, float(both.max()) + air)
    chart = Chart()
    if zero:
        chart.across(0)
        chart.upright(0)
    chart.line(ends, ends, colour=MUTED, dashes=DASHED)
    if error is not None and len(x) <= 60:
        chart.errors(x, y, error[::step], colour=MUTED, width=0.6, alpha=0.5)
    hollow = np.zeros(len(x), dtype=bool) if odd is None else odd[::step]
    chart.dots(x[hollow], y[hollow], colour=ACCENT, radius=1.7, hollow=True)
    few = np.count_nonzero(~hollow) < 60
    chart.dots(x[~hollow], y[~hollow], colour=ACCENT, radius=1.7 if few else 1.2, alpha=0.85 if few else 0.5)
    chart.x.given = chart.y.given = ends
    chart.x.label, chart.y.label = xlabel, ylabel
    chart.x.most = chart.y.most = 5
    return chart.svg(label)


def _scatter(chart: Chart, points: Points) -> None:
    odd = points.odd if points.odd is not None else np.zeros(len(points.x), dtype=bool)
    for use, hollow in ((~odd, False), (odd, True)):
        if points.error is not None:
            chart.errors(points.x[use], points.loss[use], points.error[use], colour=INK)
        chart.dots(points.x[use], points.loss[use], colour=INK, radius=2.2, hollow=hollow)


def _limits(chart: Chart, losses: FloatArray) -> None:
    """Room for bands and error bars, but no runaway one squeezes the curves into a line."""
    chart.x.margin, chart.y.margin = 0.02, 0.1
    low, high = chart.y.limits
    room = 1.2 * float(np.ptp(losses)) or 0.05
    chart.y.given = (max(low, float(losses.min()) - room), min(high, float(losses.max()) + room))


def _colour(curve: Curve) -> str:
    return ACCENT if curve.loss[-1] < curve.loss[0] else SECOND


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Positions for labels at `values`, moved so that neighbours are `gap` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = list(values)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = (sum(placed) - sum(values)) / max(len(values), 1)
    return [value - shift for value in placed]


def _short(name: str, limit: int = 15) -> str:
    """A name that is too long, without its middle: what tells names apart stands at their ends as often as at their beginnings.

    Examples:
        >>> _short("domain_with_a_long_name_7", 12), _short("web")
        ('domain…ame_7', 'web')
    """
    if len(name) <= limit:
        return name
    end = (limit - 1) // 2
    return f"{name[: limit - 1 - end]}…{name[-end:]}"
