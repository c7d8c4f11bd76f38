"""What a mixture for targets buys and costs: set by set, each target's own best mixture, and the frontier between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opmix.report.drawing import ACCENT, INK, MUTED, SECOND, Chart
from opmix.report.figures import _short
from opmix.report.html import Html, Scale, el, folded, join, number, percent, row, span, table, whisker
from opmix.results.mixture import MixtureFile
from opmix.results.payoff import Payoff

SHADES = 4
UPRIGHT = 8
"""Columns beyond which names stand on end."""


def targets_section(document: MixtureFile) -> Html | None:
    """None where the search had no targets."""
    told = Payoff.read(document.evidence)
    if told is None:
        return None
    lead = (
        f"Changes by the law, from {told.reference} to the "
        f"{'recommended' if document.decision and document.decision.action == 'move' else 'proposed'} mixture; "
        "a minus is a gain. Targets are never trained on."
    )
    silent = None
    if told.silent:
        names = ", ".join(
            f"{n} ({number(s.spread)} against {number(s.noise)} of noise)" for n, s in told.silent.items()
        )
        silent = el(
            "p", f"Without a say, since the probes' losses do not stand out of noise: {names}.", class_="caption"
        )
    alone = [_side_by_side(told), _matrix(told)] if told.alone else []
    return el(
        "section",
        el("h2", "Targets"),
        el("p", lead, class_="lead"),
        _paid(told),
        silent,
        *(part for part in alone if part is not None),
        id="targets",
    )


def _side_by_side(told: Payoff) -> Html:
    """The frontier and the mixtures at its ends; below each other where there are many domains."""
    figure, mixtures = _frontier(told), _own_mixtures(told)
    if len(told.mixture) <= UPRIGHT:
        return el("div", figure, el("div", mixtures), class_="split")
    return join([el("div", figure, class_="panels"), mixtures])


def _paid(told: Payoff) -> Html:
    """Every set's change with its interval, targets first."""
    ordered = [*told.targets, *(n for n in told.changes if n not in told.targets)]
    ends = [end for n in ordered for end in told.changes[n].interval]
    scale = Scale.around([told.changes[n].nats for n in ordered], ends)
    rows = []
    for name in ordered:
        change = told.changes[name]
        label = f"{name}: {number(change.nats, sign=True)} nats, interval {span(change.interval, sign=True)}"
        picture = whisker(
            change.nats, change.interval, scale, label=label, kind="dot" if change.nats <= 0 else "dot worse"
        )
        what = "target" if name in told.targets else "domain"
        rows.append(
            row(
                name,
                what,
                percent(told.weights.get(name, 0.0), 0),
                picture,
                number(change.nats, sign=True),
                span(change.interval, sign=True),
                f"{number(change.percent, 1, sign=True)} %",
            )
        )
    head = ["Eval set", "", "Weight", "", "Nats", "Interval", "Of its loss now"]
    return table(head, rows, caption="What every set gains or pays")


def _frontier(told: Payoff) -> Html | None:
    """How far a target can go, and what it costs the others: curves over its weight, or a dot for each target."""
    against = "other targets" if len(told.targets) > 1 else "domains"
    curves = {t: np.array(a.frontier, dtype=np.float64) for t, a in told.alone.items() if a.frontier}
    if not curves:
        return None
    few = all(len(points) > 1 for points in curves.values())

    chart = Chart()
    chart.across(0)
    chart.upright(0)
    for index, (name, points) in enumerate(curves.items()):
        colour = (ACCENT, SECOND, INK)[index % 3]
        if few:
            chart.line(points[:, 1], points[:, 2], colour=colour, width=1.2)
            chart.dots(points[:, 1], points[:, 2], colour=colour, radius=1.6)
            end = points[-1]
            chart.words(_short(name, 14), end[1], end[2], size=7, level="above", moved=(3, -2))
        else:
            chart.dots(points[-1:, 1], points[-1:, 2], colour=ACCENT, radius=1.9)
    own = [told.changes[t].nats for t in curves]
    chart.diamonds(own, [_others(told, t) for t in curves], colour=MUTED, radius=3.2)
    chart.x.margin = chart.y.margin = 0.16
    chart.x.label, chart.y.label = "change of the target, nats", f"mean of the {against}"

    spoken = "; ".join(f"{n}: {p[-1, 1]:+.3f}, others {p[-1, 2]:+.3f}" for n, p in curves.items())
    how = "each line: more and more weight on one target" if few else "each dot: the mixture best for one target alone"
    words = f"What one target costs the {against}; {how}; diamonds: where this mixture leaves it"
    return el("figure", el("figcaption", words), chart.svg(f"{words}. Alone: {spoken}"))


def _others(told: Payoff, target: str) -> float:
    rest = [t for t in told.targets if t != target] or [n for n in told.changes if n not in told.targets]
    return float(np.mean([told.changes[n].nats for n in rest]))


def _own_mixtures(told: Payoff) -> Html:
    domains = list(told.mixture)
    rows = [row("this mixture", *(percent(told.mixture.get(d), 0) for d in domains), class_="own")]
    rows += [row(t, *(percent(a.mixture.get(d, 0.0), 0) for d in domains)) for t, a in told.alone.items()]
    kind = "matrix" if len(domains) <= UPRIGHT else "matrix upright"
    return table(["Best for", *domains], rows, caption="The mixture that is best for each target alone", class_=kind)


def _matrix(told: Payoff) -> Html:
    """Change of every set where the mixture is that of one target alone."""
    sets = [*told.targets, *(n for n in told.changes if n not in told.targets)]
    top = max((abs(a.changes[s]) for a in told.alone.values() for s in sets), default=0.0) or 1.0
    rows = [
        el("tr", el("th", target, scope="row"), *(_cell(alone.changes[s], top, s == target) for s in sets))
        for target, alone in told.alone.items()
    ]
    kind = "matrix" if len(sets) <= UPRIGHT else "matrix upright"
    caption = join(["What its best mixture does to every set", el("span", "hundredths of a nat", class_="legend")])
    return folded(
        "What each target alone would cost the others", table(["For", *sets], rows, caption=caption, class_=kind)
    )


def _cell(value: float, top: float, own: bool) -> Html:
    step = round(SHADES * abs(value) / top)
    text = number(100 * value, 0, sign=True)
    kind = f"{'down' if value < 0 else 'up'}{step}" if step else None
    return el("td", el("b", text) if own else text, class_=kind)


def weights_of_view(document: MixtureFile, metrics: Sequence[str], weights: Sequence[float]) -> list[Mapping[str, Any]]:
    """Sliders of the what-if view: the targets' weights, as shares of the objective; none without targets."""
    told = Payoff.read(document.evidence)
    if told is None:
        return []
    return [{"metric": metrics.index(t), "name": t, "weight": weights[metrics.index(t)]} for t in told.targets]
