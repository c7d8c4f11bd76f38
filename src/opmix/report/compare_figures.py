"""Panels of a comparison: loss against what it cost, and a step chart over the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opmix.report.figures import ACCENT, MUTED, RULE, SECOND, _panel, _short
from opmix.report.html import Html


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
        for point in front:
            _named(axes, point.flops, point.loss, point.name, highlighted, above=True)
        for point in points:
            if point.name == highlighted and point not in front:
                _named(axes, point.flops, point.loss, point.name, highlighted, above=False)
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("FLOPs in all")
        axes.set_ylabel("test loss")

    spoken = "; ".join(f"{p.name}: {p.loss:.4f} nats at {p.flops:.3g} FLOPs" for p in points)
    return _panel(draw, f"Mean test loss against FLOPs. {spoken}")


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
            if chosen or name == highlighted:
                _named(axes, loss, forgotten, name, highlighted, above=name != highlighted)
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("test loss on the new")
        axes.set_ylabel("forgotten of the old")

    spoken = "; ".join(f"{n}: {loss:.4f} nats, {forgotten:+.4f} forgotten" for n, loss, forgotten in points)
    return _panel(draw, f"Forgetting against loss on new domains. {spoken}")


def _dot(axes: Any, x: float, y: float, deviation: float, colour: str) -> None:
    if deviation == deviation:
        axes.errorbar(x, y, yerr=deviation, color=colour, linewidth=0.9, capsize=2)
    axes.plot([x], [y], marker="o", ms=4, color=colour)


def _named(axes: Any, x: float, y: float, name: str, highlighted: str, *, above: bool) -> None:
    axes.annotate(
        _short(name, 16),
        (x, y),
        xytext=(4, 4 if above else -10),
        textcoords="offset points",
        fontsize=7.5,
        color=ACCENT if name == highlighted else SECOND,
    )
