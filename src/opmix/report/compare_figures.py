"""Panels of a comparison: loss against what it cost, and a step chart over the stages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from opmix.report.drawing import ACCENT, MUTED, RULE, SECOND, Chart
from opmix.report.figures import _apart, _short
from opmix.report.html import Html

MOST_NAMED = 12
"""Points of a panel up to which each has its name."""
_MARGIN = 0.7
"""Where the axes end, for names to stand beside them."""


@dataclass(frozen=True)
class Spent:
    """One entrant: total FLOPs, mean test loss and its deviation over seeds (NaN: one seed)."""

    name: str
    flops: float
    loss: float
    deviation: float = float("nan")


def frontier(points: Sequence[Spent]) -> list[Spent]:
    """Those that no other beats in both, by FLOPs.

    Examples:
        >>> [p.name for p in frontier([Spent("a", 1, 3), Spent("b", 2, 2), Spent("c", 3, 2.5)])]
        ['a', 'b']
    """
    best, kept = float("inf"), []
    for point in sorted(points, key=lambda p: (p.flops, p.loss)):
        if point.loss < best:
            best = point.loss
            kept.append(point)
    return kept


def pareto_panel(points: Sequence[Spent], highlighted: str) -> Html:
    """Mean test loss against all FLOPs, shared stages and searches included; the frontier as steps.

    Args:
        points: One an entrant.
        highlighted: The reference.
    """
    front = frontier(points)

    chart = Chart(right=_MARGIN)
    steps = [
        (p.flops, loss)
        for before, p in zip([*front[:1], *front], front, strict=False)
        for loss in (before.loss, p.loss)
    ]
    chart.line(*zip(*steps, strict=True), colour=RULE, width=1.0)
    for point in points:
        colour = ACCENT if point.name == highlighted else SECOND if point in front else MUTED
        _dot(chart, point.flops, point.loss, point.deviation, colour)
    shown = points if len(points) <= MOST_NAMED else [p for p in points if p in front or p.name == highlighted]
    _names(chart, [(p.name, p.flops, p.loss) for p in shown], highlighted, {p.name for p in front})
    chart.x.label, chart.y.label = "FLOPs in all", "test loss"
    spoken = "; ".join(f"{p.name}: {p.loss:.4f} nats at {p.flops:.3g} FLOPs" for p in points)
    return chart.svg(f"Mean test loss against FLOPs. {spoken}")


def forgetting_panel(points: Sequence[tuple[str, float, float]], highlighted: str) -> Html:
    """What was forgotten of the old against the loss on the new, one dot an entrant; low and left is good.

    Args:
        points: Name, mean test loss of what was new, mean forgetting.
        highlighted: The reference.
    """
    chart = Chart(right=_MARGIN)
    chart.across(0)
    least, lowest = min(points, key=lambda p: p[2]), min(points, key=lambda p: p[1])
    of_note = {least[0], lowest[0]}
    for name, loss, forgotten in points:
        colour = ACCENT if name == highlighted else SECOND if name in of_note else MUTED
        _dot(chart, loss, forgotten, float("nan"), colour)
    shown = points if len(points) <= MOST_NAMED else [p for p in points if p[0] in (*of_note, highlighted)]
    _names(chart, shown, highlighted, of_note)
    chart.x.label, chart.y.label = "test loss on the new", "forgotten of the old"
    spoken = "; ".join(f"{n}: {loss:.4f} nats, {forgotten:+.4f} forgotten" for n, loss, forgotten in points)
    return chart.svg(f"Forgetting against loss on new domains. {spoken}")


def _dot(chart: Chart, x: float, y: float, deviation: float, colour: str) -> None:
    if deviation == deviation:
        chart.errors([x], [y], [deviation], colour=colour, width=0.9, cap=2)
    chart.dots([x], [y], colour=colour, radius=2.4)


def _names(
    chart: Chart, points: Sequence[tuple[str, float, float]], highlighted: str, of_note: Collection[str]
) -> None:
    """Names right of the axes at the height of their points, apart from each other, a thin line to each."""
    chart.x.margin, chart.y.margin = 0.08, 0.12
    low, high = chart.y.limits
    heights = _apart([y for _, _, y in points], (high - low) / 13)
    for (name, x, y), height in zip(points, heights, strict=True):
        colour = ACCENT if name == highlighted else SECOND if name in of_note else MUTED
        chart.beside(_short(name, 17), height, colour=colour, of=(x, y))
