"""Small matplotlib panels as inline SVG that takes its colours and fonts from the page.

Each panel is a figure of its own, so the page's grid can put three in a row on a laptop and one on a phone.
matplotlib draws with marker colours that become CSS variables: one picture serves light, dark and print.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.report.html import Html

WIDTH, HEIGHT = 3.5, 2.35  # inches at 100 units each; the grid scales it
MAX_POINTS = 300

INK, MUTED, RULE, ACCENT, SECOND, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    SECOND: "--second",
    PAPER: "--paper",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opmix",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


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

    def draw(axes: Any) -> None:
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=ACCENT, alpha=0.16, linewidth=0)
        low, high = (points.x.min(), points.x.max()) if points is not None else (curve.x[0], curve.x[-1])
        inside = (curve.x >= low - 1e-9) & (curve.x <= high + 1e-9)
        axes.plot(curve.x, curve.loss, color=ACCENT, linewidth=1.0, dashes=(3, 2))
        axes.plot(curve.x[inside], curve.loss[inside], color=ACCENT, linewidth=1.8)
        if points is not None:
            _scatter(axes, points)
        for at, name in marks:
            axes.axvline(at, color=MUTED, linewidth=0.8, dashes=(1, 2))
            axes.annotate(
                name,
                (at, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3 if at < 0.7 else -3, -1),
                color=MUTED,
                textcoords="offset points",
                ha="left" if at < 0.7 else "right",
                va="top",
                fontsize=7.5,
            )
        _limits(axes, curve.loss if points is None else np.concatenate([curve.loss, points.loss]))
        axes.set_xlabel(xlabel)

    return _panel(draw, label)


def profile_panel(
    curves: Sequence[Curve], highlighted: Sequence[int], level: float, *, xlabel: str, label: str
) -> Html:
    """Loss as each coordinate's share changes: all in grey, the ones that matter named at their ends."""

    def draw(axes: Any) -> None:
        for i, curve in enumerate(curves):
            if i not in highlighted:
                axes.plot(curve.x, curve.loss, color=MUTED, linewidth=0.8, alpha=0.45)
        ends: list[float] = []
        axes.axhline(level, color=RULE, linewidth=0.8)
        for i in highlighted:
            curve = curves[i]
            colour = _colour(curve)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(curve.x, curve.loss, color=colour, linewidth=1.7)
            ends.append(float(curve.loss[-1]))
        _limits(axes, np.concatenate([curve.loss for curve in curves]))
        axes.set_xlabel(xlabel)
        gap = 0.085 * float(np.diff(axes.get_ylim())[0])
        for i, y in zip(highlighted, _apart(ends, gap), strict=True):
            curve = curves[i]
            where = axes.get_yaxis_transform()
            axes.text(1.02, y, _short(curve.label), transform=where, color=_colour(curve), fontsize=7.5, va="center")

    return _panel(draw, label, right=0.74)


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

    def draw(axes: Any) -> None:
        step = max(1, -(-len(predicted) // MAX_POINTS))
        x, y = predicted[::step], observed[::step]
        both = np.concatenate([x, y, [0.0]] if zero else [x, y])
        air = 0.06 * float(np.ptp(both)) or 0.01
        ends = (float(both.min()) - air, float(both.max()) + air)
        if zero:
            axes.axhline(0, color=RULE, linewidth=0.8)
            axes.axvline(0, color=RULE, linewidth=0.8)
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, dashes=(3, 2))
        if error is not None and len(x) <= 60:
            axes.errorbar(x, y, yerr=error[::step], fmt="none", color=MUTED, elinewidth=0.6, alpha=0.5)
        hollow = np.zeros(len(x), dtype=bool) if odd is None else odd[::step]
        axes.scatter(x[hollow], y[hollow], s=12, facecolors="none", edgecolors=ACCENT, linewidths=0.8)
        x, y = x[~hollow], y[~hollow]
        axes.scatter(x, y, s=11 if len(x) < 60 else 6, color=ACCENT, alpha=0.85 if len(x) < 60 else 0.5, linewidths=0)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.locator_params(nbins=5)

    return _panel(draw, label)


def _scatter(axes: Any, points: Points) -> None:
    odd = points.odd if points.odd is not None else np.zeros(len(points.x), dtype=bool)
    for use, face in ((~odd, INK), (odd, "none")):
        if use.any():
            error = None if points.error is None else points.error[use]
            axes.errorbar(
                points.x[use], points.loss[use], yerr=error, fmt="o", ms=3.6, color=INK, mfc=face, elinewidth=0.8
            )


def _limits(axes: Any, losses: FloatArray) -> None:
    """Room for bands and error bars, but no runaway one squeezes the curves into a line."""
    axes.margins(x=0.02, y=0.1)
    low, high = axes.get_ylim()
    room = 1.2 * float(np.ptp(losses)) or 0.05
    axes.set_ylim(max(low, float(losses.min()) - room), min(high, float(losses.max()) + room))


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


def _panel(draw: Callable[[Any], None], label: str, *, right: float = 0.98) -> Html:
    # Here, not at the top: `opmix.report` is imported by commands that draw nothing.
    import matplotlib
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is the browser's to draw
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0.145, 0.19, right - 0.145, 0.77))
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> Html:
    """Strip what a page does not need, take over its colours and font, keep ids apart from other panels'."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', body)
    inside = body[body.index(">") + 1 :]
    for marker, variable in _VARIABLES.items():
        inside = inside.replace(marker, f"var({variable})")
    inside = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", inside)
    prefix = "f" + hashlib.sha256((label + inside).encode()).hexdigest()[:10] + "-"
    # Group ids (axes_1, patch_2...) serve nobody; the referenced ones get the panel's own prefix.
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', inside))
    inside = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", inside)
    inside = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", inside)
    inside = re.sub(r">\s+<", "><", inside)
    view = box[1] if box else f"0 0 {WIDTH * 72} {HEIGHT * 72}"
    name = escape(label)
    return Html(f'<svg class="panel" viewBox="{view}" role="img" aria-label="{name}"><title>{name}</title>{inside}')
