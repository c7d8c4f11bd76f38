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
            if point.deviation == point.deviation:
                axes.errorbar(point.flops, point.loss, yerr=point.deviation, color=colour, linewidth=0.9, capsize=2)
            axes.plot([point.flops], [point.loss], marker="o", ms=4, color=colour)
        # Names of the frontier and the reference only: the table beside it has them all.
        for point in {p.name: p for p in [*front, *(p for p in points if p.name == highlighted)]}.values():
            colour = ACCENT if point.name == highlighted else SECOND
            axes.annotate(
                _short(point.name, 16), (point.flops, point.loss), xytext=(4, 3), textcoords="offset points", fontsize=7.5,
                color=colour,
            )  # fmt: skip
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("FLOPs in all")
        axes.set_ylabel("test loss")

    spoken = "; ".join(f"{p.name}: {p.loss:.4f} nats at {p.flops:.3g} FLOPs" for p in points)
    return _panel(draw, f"Mean test loss against FLOPs. {spoken}")
