"""Panels of a life: the mixture over its stages, and each domain's loss along the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opmix.report.figures import ACCENT, INK, MUTED, PAPER, RULE, SECOND, _apart, _panel, _short
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

    def draw(axes: Any) -> None:
        from matplotlib.patheffects import withStroke

        last: list[tuple[str, float]] = []
        edges = np.array([0.0, *ends])
        floor = np.zeros(len(mixtures))
        for index, name in enumerate(names):
            shares = np.array([m.get(name, 0.0) for m in mixtures])
            colour, alpha = _COLOURS[index % 3], _ALPHAS[index // 3 % 6]
            axes.stairs(floor + shares, edges, baseline=floor, fill=True, color=colour, alpha=alpha, linewidth=0)
            widths = np.diff(edges) * (shares >= _ROOM_FOR_A_NAME)
            widest = int(np.argmax(widths))
            if shares[-1] > 0:
                last.append((name, float(floor[-1] + shares[-1] / 2)))
            elif widths[widest] > 0.12 * edges[-1]:
                middle, height = (edges[widest] + edges[widest + 1]) / 2, floor[widest] + shares[widest] / 2
                shown = axes.text(middle, height, _short(name, 12), ha="center", va="center", fontsize=7, color=INK)
                shown.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
            floor = floor + shares
        for (name, height), beside in zip(last, _apart([h for _, h in last], 0.062), strict=True):
            axes.annotate(
                _short(name, 16),
                (edges[-1], height),
                xytext=(1.04, beside),
                textcoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=7,
                color=INK,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0},
            )
        for at, name in stages:
            axes.axvline(at, color=RULE, linewidth=0.8)
            axes.annotate(
                _short(name, 14),
                (at, 1.0),
                xytext=(2, 1),
                textcoords="offset points",
                fontsize=7,
                color=MUTED,
                va="bottom",
            )
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(0, 1)
        axes.set_xlabel("million tokens")
        axes.set_ylabel("share of tokens")

    shown = "; ".join(f"{name}: " + ", ".join(f"{m.get(name, 0):.2f}" for m in mixtures) for name in names)
    return _panel(draw, f"Mixture over the life. {shown}", right=0.76)


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

    def draw(axes: Any) -> None:
        for low, high in trained:
            axes.axvspan(low, high, color=ACCENT, alpha=0.1, linewidth=0)
        for points in lives:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=ACCENT, linewidth=1.4, marker="o", ms=3.2)
        axes.set_xlim(0, total)
        axes.margins(y=0.15)
        axes.set_xlabel("million tokens")

    spoken = ", ".join(f"{y:.3f} at {x:.3g}" for x, y in lives[0])
    return _panel(draw, f"Test loss of {name}: {spoken} million tokens")
