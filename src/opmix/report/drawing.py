"""A small chart as inline SVG: marks in data coordinates, colours and fonts those of the page.

One picture serves light, dark and print, and it is the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.report.axes import Axis, tick_labels, ticks
from opmix.report.html import Html

WIDTH, HEIGHT = 252.0, 169.2
"""Of a chart, in units of which the page makes what its grid has room for; letters are 8.5 of them high."""
LEFT, TOP, BOTTOM = 36.5, 6.8, 137.0
"""Edges of what is inside the axes."""

INK, MUTED, RULE, ACCENT, SECOND, PAPER = (f"var(--{n})" for n in ("ink", "muted", "rule", "accent", "second", "paper"))
DASHED, DOTTED = "3 2", "1 2"

Values = FloatArray | Sequence[float]
Anchor = Literal["start", "middle", "end"]
Level = Literal["above", "middle", "below"]
_BASELINE: dict[Level, float] = {"above": -0.2, "middle": 0.35, "below": 0.8}
"""From the height that is asked for down to the line that letters stand on, in heights of a letter."""


@dataclass(frozen=True)
class _Place:
    """Where data coordinates lie on the paper."""

    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    right: float

    def x(self, values: Values | float) -> FloatArray:
        low, high = self.x_limits
        return LEFT + (np.asarray(values, dtype=np.float64) - low) / (high - low) * (self.right - LEFT)

    def y(self, values: Values | float) -> FloatArray:
        low, high = self.y_limits
        return BOTTOM - (np.asarray(values, dtype=np.float64) - low) / (high - low) * (BOTTOM - TOP)


class Chart:
    """Marks, names and two axes; `svg` draws them. Whatever is marked counts for limits that are not given."""

    def __init__(self, *, right: float = 0.98) -> None:
        """An empty one.

        Args:
            right: Where the axes end, as a share of the width; names may stand beside them.
        """
        self.x, self.y = Axis(), Axis()
        self._right = right * WIDTH
        self._inside: list[Callable[[_Place], str]] = []
        self._around: list[Callable[[_Place], str]] = []

    def line(
        self, x: Values, y: Values, *, colour: str, width: float = 0.8, dashes: str = "", alpha: float = 1.0
    ) -> None:
        """A line through points; broken where a number is not finite."""
        self.x.holds(x)
        self.y.holds(y)
        look = _stroke(colour, width, dashes, alpha)
        self._inside.append(lambda at: f'<path d="{_path(at.x(x), at.y(y))}" style="{look}"/>')

    def band(self, x: Values, low: Values, high: Values, *, colour: str, alpha: float) -> None:
        """What lies between two lines."""
        self.x.holds(x)
        self.y.holds(low)
        self.y.holds(high)
        around = np.concatenate([np.asarray(x), np.asarray(x)[::-1]])
        edge = np.concatenate([np.asarray(low), np.asarray(high)[::-1]])
        look = f"fill:{colour};fill-opacity:{alpha:g}"
        self._inside.append(lambda at: f'<path d="{_path(at.x(around), at.y(edge))}Z" style="{look}"/>')

    def stretch(self, low: float, high: float, *, colour: str, alpha: float) -> None:
        """A stretch of x over the whole height."""
        look = f"fill:{colour};fill-opacity:{alpha:g}"
        self.x.holds([low, high])
        self._inside.append(
            lambda at: (
                f'<path d="M{_n(at.x(low))} {_n(TOP)}H{_n(at.x(high))}V{_n(BOTTOM)}H{_n(at.x(low))}Z" style="{look}"/>'
            )
        )

    def across(self, y: float, *, colour: str = RULE, width: float = 0.8) -> None:
        """A level line from side to side."""
        self.y.holds([y])
        look = _stroke(colour, width)
        self._inside.append(
            lambda at: f'<path d="M{_n(LEFT)} {_n(at.y(y))}H{_n(self._right)}" style="{look}"/>',
        )

    def upright(self, x: float, *, colour: str = RULE, width: float = 0.8, dashes: str = "") -> None:
        """A line from top to bottom."""
        self.x.holds([x])
        look = _stroke(colour, width, dashes)
        self._inside.append(lambda at: f'<path d="M{_n(at.x(x))} {_n(TOP)}V{_n(BOTTOM)}" style="{look}"/>')

    def dots(
        self, x: Values, y: Values, *, colour: str, radius: float, alpha: float = 1.0, hollow: bool = False
    ) -> None:
        """A dot at each point."""
        self.x.holds(x)
        self.y.holds(y)
        if hollow:
            look = _stroke(colour, 0.8, alpha=alpha)
            shape = f'<circle cx="{{}}" cy="{{}}" r="{_n(radius)}" style="{look}"/>'
            self._inside.append(lambda at: "".join(shape.format(*p) for p in _pairs(at.x(x), at.y(y))))
            return
        look = f"{_stroke(colour, 2 * radius, alpha=alpha)};stroke-linecap:round"
        self._inside.append(lambda at: _strokes((f"M{a} {b}h0" for a, b in _pairs(at.x(x), at.y(y))), look))

    def diamonds(self, x: Values, y: Values, *, colour: str, radius: float) -> None:
        """A square on its corner at each point."""
        self.x.holds(x)
        self.y.holds(y)
        look, r = f"fill:{colour}", _n(radius)
        shape = f"M{{}} {{}}m-{r} 0l{r} -{r} {r} {r} -{r} {r}z"
        self._inside.append(lambda at: _strokes((shape.format(*p) for p in _pairs(at.x(x), at.y(y))), look))

    def errors(
        self,
        x: Values,
        y: Values,
        error: Values,
        *,
        colour: str,
        width: float = 0.8,
        alpha: float = 1.0,
        cap: float = 0.0,
    ) -> None:
        """A bar from y - error to y + error at each point, with caps of a width."""
        low, high = np.asarray(y) - np.asarray(error), np.asarray(y) + np.asarray(error)
        self.x.holds(x)
        self.y.holds(low)
        self.y.holds(high)
        look, ends = _stroke(colour, width, alpha=alpha), f"m-{_n(cap)} 0h{_n(2 * cap)}" if cap else ""

        def drawn(at: _Place) -> str:
            lines = zip(_pairs(at.x(x), at.y(low)), _pairs(at.x(x), at.y(high)), strict=True)
            return _strokes((f"M{a} {b}{ends}M{a} {b}V{top}{ends}" for (a, b), (_, top) in lines), look)

        self._inside.append(drawn)

    def words(
        self,
        words: str,
        x: float,
        y: float | None,
        *,
        colour: str = INK,
        size: float = 7.5,
        anchor: Anchor = "start",
        level: Level = "middle",
        moved: tuple[float, float] = (0.0, 0.0),
        halo: bool = False,
    ) -> None:
        """Words at a place.

        Args:
            words: What to say.
            x: Where they begin, have their middle or end.
            y: How high; None: at the upper edge.
            colour: Of the letters.
            size: Height of a letter.
            anchor: What of them is at x.
            level: Above, at or below y.
            moved: Right and down from there, in units of the paper.
            halo: Letters stand out from what is behind them.
        """
        look = _letters(colour, size) + (
            f";paint-order:stroke;stroke:{PAPER};stroke-width:2.5;stroke-linejoin:round" if halo else ""
        )
        right, down = moved[0], moved[1] + _BASELINE[level] * size
        self._around.append(
            lambda at: _text(
                words, float(at.x(x)) + right, (TOP if y is None else float(at.y(y))) + down, look, anchor=anchor
            )
        )

    def beside(
        self, words: str, y: float, *, colour: str, size: float = 7.5, of: tuple[float, float] | None = None
    ) -> None:
        """Words right of the axes at a height, with a thin line to the point they are `of`."""
        start = self._right + (0.02 if of is None else 0.04) * (self._right - LEFT)
        look, line = _letters(colour, size), _stroke(RULE, 0.5)

        def drawn(at: _Place) -> str:
            height = float(at.y(y))
            text = _text(words, start, height + _BASELINE["middle"] * size, look)
            if of is None:
                return text
            ends = _path(np.array([at.x(of[0]), start - 1.5]), np.array([at.y(of[1]), height]))
            return f'<path d="{ends}" style="{line}"/>{text}'

        self._around.append(drawn)

    def svg(self, label: str) -> Html:
        """The picture.

        Args:
            label: What it says, for screen readers.
        """
        at = _Place(self.x.limits, self.y.limits, self._right)
        inside = "".join(mark(at) for mark in self._inside)
        key = "c" + hashlib.sha256((label + inside).encode("utf-8", "surrogatepass")).hexdigest()[:10]
        box = f"M{_n(LEFT)} {_n(TOP)}H{_n(self._right)}V{_n(BOTTOM)}H{_n(LEFT)}Z"
        parts = (
            f'<clipPath id="{key}"><path d="{box}"/></clipPath><g clip-path="url(#{key})">{inside}</g>',
            _drawn_axes(self.x, self.y, at),
            *(mark(at) for mark in self._around),
        )
        name = escape(label)
        return Html(
            f'<svg class="panel" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{name}">'
            f"<title>{name}</title>{''.join(parts)}</svg>"
        )


def _drawn_axes(x: Axis, y: Axis, at: _Place) -> str:
    along, up = ticks(*at.x_limits, x.most), ticks(*at.y_limits, y.most)
    edges = f"M{_n(LEFT)} {_n(TOP)}V{_n(BOTTOM)}H{_n(at.right)}"
    marks = "".join(f"M{_n(at.x(v))} {_n(BOTTOM)}v3" for v in along) + "".join(
        f"M{_n(LEFT)} {_n(at.y(v))}h-3" for v in up
    )
    parts, look = [f'<path d="{edges}{marks}" style="{_stroke(RULE, 0.8)}"/>'], _letters(MUTED, 8.5)
    names, power = tick_labels(along)
    parts += [_text(n, float(at.x(v)), BOTTOM + 12.5, look, anchor="middle") for n, v in zip(names, along, strict=True)]
    parts.append(_text(power, at.right, BOTTOM + 24, look, anchor="end"))
    names, power = tick_labels(up)
    parts += [_text(n, LEFT - 5.5, float(at.y(v)) + 3, look, anchor="end") for n, v in zip(names, up, strict=True)]
    parts.append(_text(power, LEFT, TOP - 2, look))
    parts.append(_text(x.label, (LEFT + at.right) / 2, BOTTOM + 24, look, anchor="middle"))
    middle = (TOP + BOTTOM) / 2
    left = LEFT - 9.5 - 5.2 * max(map(len, names), default=0)
    parts.append(_text(y.label, left, middle, look, anchor="middle", turned=True))
    return "".join(parts)


def _n(value: float | FloatArray) -> str:
    """A coordinate to a hundredth."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def _pairs(x: FloatArray, y: FloatArray) -> list[tuple[str, str]]:
    points = zip(np.ravel(x).tolist(), np.ravel(y).tolist(), strict=True)
    return [(_n(a), _n(b)) for a, b in points if math.isfinite(a) and math.isfinite(b)]


def _path(x: FloatArray, y: FloatArray) -> str:
    finite: npt.NDArray[np.bool_] = np.isfinite(x) & np.isfinite(y)
    parts, joined = [], False
    for a, b, there in zip(np.ravel(x).tolist(), np.ravel(y).tolist(), np.ravel(finite).tolist(), strict=True):
        if there:
            parts.append(f"{'L' if joined else 'M'}{_n(a)} {_n(b)}")
        joined = there
    return "".join(parts)


def _strokes(parts: Iterable[str], look: str) -> str:
    path = "".join(parts)
    return f'<path d="{path}" style="{look}"/>' if path else ""


def _stroke(colour: str, width: float, dashes: str = "", alpha: float = 1.0) -> str:
    more = (f";stroke-dasharray:{dashes}" if dashes else "") + (f";stroke-opacity:{alpha:g}" if alpha < 1 else "")
    return f"fill:none;stroke:{colour};stroke-width:{width:g}{more}"


def _letters(colour: str, size: float) -> str:
    return f"font:{size:g}px var(--sans);fill:{colour}"


def _text(words: str, x: float, y: float, look: str, *, anchor: Anchor = "start", turned: bool = False) -> str:
    if not words:
        return ""
    where = f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
    side = "" if anchor == "start" else f";text-anchor:{anchor}"
    return f'<text x="{_n(x)}" y="{_n(y)}"{where} style="{look}{side}">{escape(words)}</text>'
