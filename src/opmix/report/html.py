"""Building blocks of the page: escaped elements, numbers as people read them, and dot-and-whisker cells.

`el` escapes every child that is not `Html` already, so a domain named `<script>` stays a name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape, unescape

MINUS = "\u2212"
DASH = "\u2013"
TIMES = "\u00d7"
THIN = "\u202f"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def raw(text: str) -> Html:
    """Trust `text` as markup; only for text made here."""
    return Html(text)


def join(parts: Iterable[Html | str | None]) -> Html:
    """Parts one after another, each escaped unless it is markup."""
    return Html("".join(_child(part) for part in parts))


def _child(part: Html | str | None) -> str:
    if part is None:
        return ""
    return part if isinstance(part, Html) else escape(part)


def el(tag: str, *children: Html | str | None, **attributes: str | bool | None) -> Html:
    r"""An element. Attribute names: trailing `_` dropped, `_` becomes `-`; None and False leave it out.

    Examples:
        >>> el("a", "x < y", href="#a", class_="plain", aria_label="a \"b\"")
        '<a href="#a" class="plain" aria-label="a &quot;b&quot;">x &lt; y</a>'
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    if tag in ("input", "meta", "br", "col"):
        return Html(f"<{' '.join(words)}>")
    return Html(f"<{' '.join(words)}>{join(children)}</{tag}>")


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A fixed-point number with a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1e5:
        return scientific(value)
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return (MINUS if value < 0 and not zero else "+" if sign and not zero else "") + text


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return DASH if share is None or not math.isfinite(share) else f"{number(share * 100, digits)}{THIN}%"


def signed(text: str) -> str:
    """The same words with true minus signs before numbers, and `+-` as one sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text.replace("+-", "\u00b1"))


def span(interval: Sequence[float] | None, digits: int = 3, *, scale: float = 1.0, sign: bool = False) -> str:
    """An interval, `low to high`."""
    if interval is None:
        return ""
    return " to ".join(number(end * scale, digits, sign=sign) for end in interval)


def scientific(value: float | None, digits: int = 1) -> str:
    """`3.1 x 10^15` with a superscript, plain below 10,000."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{3 if abs(value) < 1 else 0}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', MINUS)}{THIN}{TIMES}{THIN}10{superscript}"


def count(value: float | None) -> str:
    """A count of tokens: `12.6 M`."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{THIN}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """`3 min 12 s`."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.2g}{THIN}s" if seconds < 10 else f"{seconds:.0f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {rest}{THIN}s"


@dataclass(frozen=True)
class Scale:
    """A horizontal scale shared by the rows of one table."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float | None], ends: Iterable[float | None] = ()) -> Scale:
        """Covers zero, the finite values and the ends of their intervals with a little air.

        A runaway end (an interval over draws that do not bound the loss) is cut off at the scale's edge: it does
        not squeeze the other rows into a point.
        """
        finite = [v for v in values if v is not None and math.isfinite(v)] + [0.0]
        sizes = sorted((e for e in ends if e is not None and math.isfinite(e)), key=abs)
        if sizes:
            limit = 6 * max(max(map(abs, finite)), abs(sizes[(len(sizes) - 1) // 2]))
            finite += [min(limit, max(-limit, e)) for e in sizes]
        low, high = min(finite), max(finite)
        air = 0.06 * (high - low) or 0.5
        return cls(low - air if low < 0 else low, high + air)

    def at(self, value: float) -> float:
        """Position in percent of the width, kept inside."""
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))


def _line(x1: float, x2: float, y1: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.2f} {y1:g}L{x2:.2f} {y2:g}"/>'


def whisker(
    value: float | None,
    interval: Sequence[float] | None,
    scale: Scale,
    *,
    label: str,
    zero: float | None = 0.0,
    noise: float | None = None,
    tick: float | None = None,
    kind: str = "dot",
) -> Html:
    """A dot with its interval on a shared scale; stretches to its cell.

    Args:
        value: Where the dot is; None draws the axis only.
        interval: Ends of the whisker.
        scale: The shared scale.
        label: Said by screen readers and shown on hover.
        zero: Where the reference line is.
        noise: Half width of a shaded band about the reference line.
        tick: Where a second value is marked.
        kind: CSS class of the dot.
    """
    parts = [f"<title>{escape(label)}</title>"]
    if zero is not None and noise:
        left, right = scale.at(zero - noise), scale.at(zero + noise)
        parts.append(f'<rect class="noise" x="{left:.2f}" width="{right - left:.2f}" y="0" height="16"/>')
    if zero is not None:
        parts.append(_line(scale.at(zero), scale.at(zero), 0, 16, "zero"))
    if interval is not None and all(map(math.isfinite, interval)):
        parts.append(_line(scale.at(interval[0]), scale.at(interval[1]), 8, 8, "wire"))
    if tick is not None and math.isfinite(tick):
        parts.append(_line(scale.at(tick), scale.at(tick), 2, 14, "tick-now"))
    if value is not None and math.isfinite(value):
        # A zero-length round-capped stroke: a dot that stays round however the cell stretches.
        parts.append(_line(scale.at(value), scale.at(value) + 0.01, 8, 8, kind))
    return _strip(parts, label)


def bar(
    value: float,
    interval: Sequence[float] | None,
    scale: Scale,
    *,
    label: str,
    ticks: Sequence[tuple[float, str]] = (),
) -> Html:
    """A bar from zero with its interval and reference ticks (position, CSS class) on a shared scale."""
    parts = [
        f"<title>{escape(label)}</title>",
        f'<rect class="bar" x="0" y="3" height="10" width="{scale.at(value):.2f}"/>',
    ]
    if interval is not None and all(map(math.isfinite, interval)):
        low, high = scale.at(interval[0]), scale.at(interval[1])
        parts.append(_line(low, high, 8, 8, "wire"))
        parts += [_line(end, end, 5.5, 10.5, "wire") for end in (low, high)]
    parts += [_line(scale.at(at), scale.at(at), 0.5, 15.5, kind) for at, kind in ticks if math.isfinite(at)]
    return _strip(parts, label)


def _strip(parts: Sequence[str], label: str) -> Html:
    return Html(
        f'<svg class="strip" viewBox="0 0 100 16" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def table(head: Sequence[str | Html], rows: Iterable[Html], *, caption: str | Html, class_: str | None = None) -> Html:
    """A table with a caption, which the keyboard can scroll; an empty heading is a figure's column."""
    cells = [el("th", h, scope="col") if h else el("td") for h in head]
    words = " ".join(unescape(re.sub("<[^>]*>", " ", caption)).split()) if isinstance(caption, Html) else caption
    return el(
        "div",
        el(
            "table",
            el("caption", caption),
            el("thead", el("tr", *cells)),
            el("tbody", *rows),
            class_=class_,
        ),
        class_="scroll",
        tabindex="0",
        role="group",
        aria_label=words or "Table",
    )


def row(name: str | Html, *cells: str | Html | None, class_: str | None = None) -> Html:
    """A table row whose first cell is its heading; markup that is an `svg` gets a figure's cell."""
    made = [el("td", c, class_="fig" if isinstance(c, Html) and c.startswith("<svg") else None) for c in cells]
    return el("tr", el("th", name, scope="row"), *made, class_=class_)


def folded(summary: str, *children: Html | str | None, open_: bool = False) -> Html:
    """A disclosure: what is inside is one click (or one print) away."""
    return el("details", el("summary", summary), *children, open=open_)
