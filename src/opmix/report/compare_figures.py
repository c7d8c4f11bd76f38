"""Panels of a comparison: loss against what it cost, and a step chart over the stages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from opmix.report.figures import ACCENT, MUTED, RULE, SECOND, _apart, _panel, _short
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

    def draw(axes: Any) -> None:
        axes.step([p.flops for p in front], [p.loss for p in front], where="post", color=RULE, linewidth=1.0)
        for point in points:
            colour = ACCENT if point.name == highlighted else SECOND if point in front else MUTED
            _dot(axes, point.flops, point.loss, point.deviation, colour)
        axes.margins(x=0.08, y=0.12)
        axes.set_xlabel("FLOPs in all")
        axes.set_ylabel("test loss")
        shown = points if len(points) <= MOST_NAMED else [p for p in points if p in front or p.name == highlighted]
        of_note = {p.name for p in front}
        _names(axes, [(p.name, p.flops, p.loss) for p in shown], highlighted, of_note)

    spoken = "; ".join(f"{p.name}: {p.loss:.4f} nats at {p.flops:.3g} FLOPs" for p in points)
    return _panel(draw, f"Mean test loss against FLOPs. {spoken}", right=_MARGIN)


def forgetting_panel(points: Sequence[tuple[str, float, float]], highlighted: str) -> Html:
    """What was forgotten of the old against the loss on the new, one dot an entrant; low and left is good.

    Args:
        points: Name, mean test loss of what was new, mean forgetting.
        highlighted: The reference.
    """

    def draw(axes: Any) -> None:
        axes.axhline(0, color=RULE, linewidth=0.8)
        least, lowest = min(points, key=lambda p: p[2]), min(points, key=lambda p: p[1])
        for name, loss, forgotten in points:
            chosen = name in (least[0], lowest[0])
            _dot(axes, loss, forgotten, float("nan"), ACCENT if name == highlighted else SECOND if chosen else MUTED)
        axes.margins(x=0.08, y=0.12)
        axes.set_xlabel("test loss on the new")
        axes.set_ylabel("forgotten of the old")
        of_note = {least[0], lowest[0]}
        shown = points if len(points) <= MOST_NAMED else [p for p in points if p[0] in (*of_note, highlighted)]
        _names(axes, shown, highlighted, of_note)

    spoken = "; ".join(f"{n}: {loss:.4f} nats, {forgotten:+.4f} forgotten" for n, loss, forgotten in points)
    return _panel(draw, f"Forgetting against loss on new domains. {spoken}", right=_MARGIN)


def _dot(axes: Any, x: float, y: float, deviation: float, colour: str) -> None:
    if deviation == deviation:
        axes.errorbar(x, y, yerr=deviation, color=colour, linewidth=0.9, capsize=2)
    axes.plot([x], [y], marker="o", ms=4, color=colour)


def _names(axes: Any, points: Sequence[tuple[str, float, float]], highlighted: str, of_note: Collection[str]) -> None:
    """Names right of the axes at the height of their points, apart from each other, a thin line to each."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    heights = _apart([y for _, _, y in points], (high - low) / 13)
    for (name, x, y), height in zip(points, heights, strict=True):
        colour = ACCENT if name == highlighted else SECOND if name in of_note else MUTED
        axes.annotate(
            _short(name, 17),
            (x, y),
            xytext=(1.04, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )
