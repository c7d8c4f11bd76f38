"""Panels of a life: the mixture over its stages, and each domain's loss along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opmix.report.drawing import ACCENT, INK, MUTED, SECOND, Chart
from opmix.report.figures import _apart, _short
from opmix.report.html import Html

_COLOURS = (ACCENT, SECOND, MUTED)
_ALPHAS = (0.9, 0.55, 0.3, 0.7, 0.42, 0.2)
_ROOM_FOR_A_NAME = 0.07  # smallest share that is named inside its own band


def stream_panel(
    ends: Sequence[float],
    mixtures: Sequence[Mapping[str, float]],
    names: Sequence[str],
    stages: Sequence[tuple[float, str]],
) -> Html:
    """Shares of every stretch of training, stacked over the tokens it took.

    Args:
        ends: Millions of tokens at which each stretch ended.
        mixtures: Of each stretch.
        names: Domains, from the bottom up.
        stages: Where each stage begins, and its name.
    """
    chart = Chart(right=0.76)
    last: list[tuple[str, float]] = []
    edges = np.array([0.0, *ends])
    corners = np.repeat(edges, 2)[1:-1]
    floor = np.zeros(len(mixtures))
    for index, name in enumerate(names):
        shares = np.array([m.get(name, 0.0) for m in mixtures])
        colour, alpha = _COLOURS[index % 3], _ALPHAS[index // 3 % 6]
        chart.band(corners, np.repeat(floor, 2), np.repeat(floor + shares, 2), colour=colour, alpha=alpha)
        widths = np.diff(edges) * (shares >= _ROOM_FOR_A_NAME)
        widest = int(np.argmax(widths))
        if shares[-1] > 0:
            last.append((name, float(floor[-1] + shares[-1] / 2)))
        elif widths[widest] > 0.12 * edges[-1]:
            middle, height = (edges[widest] + edges[widest + 1]) / 2, floor[widest] + shares[widest] / 2
            chart.words(_short(name, 12), middle, height, size=7, anchor="middle", halo=True)
        floor = floor + shares
    for (name, height), beside in zip(last, _apart([h for _, h in last], 0.062), strict=True):
        chart.beside(_short(name, 16), beside, colour=INK, size=7, of=(float(edges[-1]), height))
    for at, name in stages:
        chart.upright(at)
        chart.words(_short(name, 14), at, None, colour=MUTED, size=7, level="above", moved=(2, -1))
    chart.x.given, chart.y.given = (0.0, float(edges[-1])), (0.0, 1.0)
    chart.x.label, chart.y.label = "million tokens", "share of tokens"
    shown = "; ".join(f"{name}: " + ", ".join(f"{m.get(name, 0):.2f}" for m in mixtures) for name in names)
    return chart.svg(f"Mixture over the life. {shown}")


def loss_panel(
    name: str, lives: Sequence[Sequence[tuple[float, float]]], trained: Sequence[tuple[float, float]], total: float
) -> Html:
    """One domain's test loss at the ends of stages, a line per seed; shaded while it is trained on.

    Args:
        name: The domain.
        lives: Per seed (million tokens, nats per token).
        trained: Stretches, in million tokens, in which it had a share.
        total: Million tokens of the whole life.
    """
    chart = Chart()
    for low, high in trained:
        chart.stretch(low, high, colour=ACCENT, alpha=0.1)
    for points in lives:
        x, y = zip(*points, strict=True)
        chart.line(x, y, colour=ACCENT, width=1.4)
        chart.dots(x, y, colour=ACCENT, radius=2.0)
    chart.x.given, chart.y.margin = (0, total), 0.15
    chart.x.label = "million tokens"
    spoken = ", ".join(f"{y:.3f} at {x:.3g}" for x, y in lives[0])
    return chart.svg(f"Test loss of {name}: {spoken} million tokens")
