"""The first screen: what mixture, how sure, what will it buy, what did it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.report.html import (
    Html,
    Scale,
    bar,
    el,
    folded,
    join,
    number,
    percent,
    row,
    span,
    table,
    whisker,
)
from opmix.report.model import Model
from opmix.report.verdict import recommended, verdict
from opmix.results.files import Shares
from opmix.results.mixture import AlternativeEntry, Interval, MixtureFile
from opmix.results.opinion import Opinion

TOP_DOMAINS = 12
TOP_METRICS = 6
TOP_ALTERNATIVES = 5
FEW_DOMAINS = 8
_NARROW = 5.0
"""Percent below which whole numbers say too little of an interval."""


def find(document: MixtureFile, name: str | None) -> AlternativeEntry | None:
    """An alternative by name."""
    return next((a for a in document.alternatives if a.name == name), None)


def reference_name(document: MixtureFile) -> str | None:
    """The mixture that gains are measured against, if it was scored."""
    wanted = document.decision.reference if document.decision else None
    for name in (wanted, "current", "uniform"):
        found = find(document, name)
        if found is not None and found.mixture:
            return found.name
    return None


def proposal_of(document: MixtureFile) -> Shares:
    """The mixture that is proposed, also where the decision is to keep another one."""
    found = find(document, "proposal")
    if found is not None and found.mixture:
        return found.mixture
    keeps = document.decision is not None and document.decision.action == "keep"
    return document.optimum if keeps and document.optimum else document.mixture


def opening(document: MixtureFile, model: Model | None) -> Html:
    """The whole first screen."""
    left = [mixture_table(document)]
    right = [predictions(document, model)] if model else []
    trained, predicted = candidates_brief(document), alternatives_brief(document, model)
    brief = join([trained, predicted]) if trained and predicted else trained or predicted
    if brief is not None:
        # Under the shorter column, so that the first screen holds everything.
        (left if len(document.mixture) <= FEW_DOMAINS else right).append(brief)
    columns = el("div", el("div", *left), el("div", *right), class_="split")
    second = Opinion.read(document.evidence)
    said = None if second is None else el("p", second.sentence().capitalize() + ".", class_="caption")
    return el("section", verdict(document), columns, said, id="summary", aria_label="Summary")


def mixture_table(document: MixtureFile) -> Html:
    """A bar per domain with its interval and ticks for the mixtures it is compared with."""
    shares = dict(sorted(document.mixture.items(), key=lambda item: -item[1]))
    current = find(document, "current")
    now = current.mixture if current and current.mixture else None
    uniform = find(document, "uniform")
    even = uniform.mixture if uniform and uniform.mixture else {d: 1 / len(shares) for d in shares}
    # The interval is the optimum's: beside the shares of another mixture it would be taken for theirs.
    interval = {} if _optimum_differs(document) else document.interval
    ends = [*shares.values(), *(h for _, h in interval.values()), *(now or even).values()]
    scale = Scale(0.0, min(1.0, max(ends) * 1.04))
    rows = [_mixture_row(name, share, document, interval, scale, now, even) for name, share in shares.items()]
    level = percent(document.interval_level, 0)
    keys = [("k-bar", "share of training tokens")]
    keys += [("k-wire", f"{level} interval")] if interval else []
    keys += [("k-now", "current")] if now else []
    keys += [("k-even", "uniform")]
    keeps = document.decision is not None and document.decision.action == "keep"
    keys += [("k-opt", "proposal" if keeps else "optimum")] if _optimum_differs(document) else []
    legend = el("span", *(el("span", el("i", class_=c), f" {words}") for c, words in keys), class_="legend")
    head = ["Domain", "", "Share", f"{level} interval" if interval else "", "Change" if now else ""]
    head = [h for i, h in enumerate(head) if h or i == 1]
    shown = table(head, rows[:TOP_DOMAINS], caption=join(["Mixture", legend]), class_="mix")
    rest = list(shares.values())[TOP_DOMAINS:]
    if not rest:
        return shown
    more = table(head, rows[TOP_DOMAINS:], caption="Smaller shares", class_="mix")
    return join([shown, folded(f"{len(rest)} more domains, {percent(sum(rest))} together", more)])


def _optimum_differs(document: MixtureFile) -> bool:
    best = document.optimum  # of the stated problem; the decision rule may keep another mixture
    return best is not None and any(abs(best.get(d, 0.0) - p) > 0.005 for d, p in document.mixture.items())


def _mixture_row(
    name: str,
    share: float,
    document: MixtureFile,
    intervals: Mapping[str, Interval],
    scale: Scale,
    now: Mapping[str, float] | None,
    even: Mapping[str, float],
) -> Html:
    interval = intervals.get(name)
    ticks = [(even.get(name, 0.0), "tick-even")]
    if now is not None:
        ticks.append((now.get(name, 0.0), "tick-now"))
    if _optimum_differs(document) and document.optimum is not None:
        ticks.append((document.optimum.get(name, 0.0), "tick-opt"))
    label = f"{name}: {percent(share)}"
    if interval:
        label += f", interval {span(interval, 1, scale=100)} percent"
    if now is not None:
        label += f", current {percent(now.get(name, 0.0))}"
    cells: list[str | Html] = [bar(share, interval, scale, label=label, ticks=ticks), percent(share)]
    if intervals:
        narrow = interval is not None and 100 * (interval[1] - interval[0]) < _NARROW
        cells.append(span(interval, 1 if narrow else 0, scale=100))
    if now is not None:
        cells.append(f"{number(100 * (share - now.get(name, 0.0)), 1, sign=True)}")
    return row(name, *cells)


def predictions(document: MixtureFile, model: Model) -> Html:
    """Predicted loss per eval set now, after the reference and after the mixture, with the gain: what of the loss is saved."""
    name = reference_name(document)
    found = find(document, name)
    reference = model.vector(found.mixture) if found and found.mixture else None
    target = model.vector(proposal_of(document))
    after = model.predict(target)[0]
    base = model.predict(reference)[0] if reference is not None else None
    change, interval = model.change(target, reference) if reference is not None else (None, None)
    rows = _prediction_rows(document, model, after, base, change, interval)
    if change is not None:
        order = np.argsort(-np.abs(change), kind="stable")
        rows = [rows[i] for i in order]
    head = ["Eval set"]
    head += ["Now"] if document.baseline else []
    head += [f"After {name}"] if base is not None else []
    head += ["After proposal"]
    head += ["", "Gain"] if change is not None else []
    mean = _mean_row(document, model, target, reference, after, base)
    keeps = document.decision is not None and document.decision.action == "keep"
    title = "What the proposal would buy" if keeps else "What it will buy"
    caption = join([title, el("span", f"predicted loss, {document.units}", class_="legend")])
    shown = table(head, [mean, *rows[:TOP_METRICS]], caption=caption, class_=f"buy of{len(head)}")
    if len(rows) <= TOP_METRICS:
        return shown
    rest = table(head, rows[TOP_METRICS:], caption="Smaller changes", class_=f"buy of{len(head)}")
    return join([shown, folded(f"{len(rows) - TOP_METRICS} more eval sets, smaller changes", rest)])


def gain_scale(change: FloatArray | None, interval: FloatArray | None) -> Scale:
    """One scale for the gains of all rows."""
    values = [] if change is None else (-change).tolist()
    return Scale.around(values, [] if interval is None else (-interval).ravel().tolist())


def _prediction_rows(
    document: MixtureFile,
    model: Model,
    after: FloatArray,
    base: FloatArray | None,
    change: FloatArray | None,
    interval: FloatArray | None,
) -> list[Html]:
    scale = gain_scale(change, interval)
    rows = []
    for e, metric in enumerate(model.metrics):
        cells: list[str | Html] = [number(document.baseline.get(metric))] if document.baseline else []
        if base is not None and change is not None:
            ends = None if interval is None else (-float(interval[1, e]), -float(interval[0, e]))
            value = -float(change[e])
            label = f"{metric}: gain {number(value, sign=True)} nats, interval {span(ends, sign=True) or 'unknown'}"
            picture = whisker(value, ends, scale, label=label, kind="dot" if value >= 0 else "dot worse")
            cells += [number(float(base[e])), number(float(after[e])), picture, number(value, sign=True)]
        else:
            cells.append(number(float(after[e])))
        rows.append(row(metric, *cells))
    return rows


def _mean_row(
    document: MixtureFile,
    model: Model,
    target: FloatArray,
    reference: FloatArray | None,
    after: FloatArray,
    base: FloatArray | None,
) -> Html:
    cells: list[str | Html] = []
    if document.baseline:
        known = [document.baseline.get(m, math.nan) for m in model.metrics]
        cells.append(number(float(model.weights @ known)))
    if reference is None or base is None:
        return row("Mean", *cells, number(float(model.weights @ after)), class_="total")
    change, interval = model.mean_change(target, reference)
    gain, ends = -change, None if interval is None else (-interval[1], -interval[0])
    scale = gain_scale(*model.change(target, reference))
    label = f"mean: gain {number(gain, sign=True)} nats, interval {span(ends, sign=True) or 'unknown'}"
    picture = whisker(gain, ends, scale, label=label, kind="dot" if gain >= 0 else "dot worse")
    cells += [number(float(model.weights @ base)), number(float(model.weights @ after)), picture]
    return row(
        "Mean" if np.ptp(model.weights) < 1e-12 else "Weighted mean",
        *cells,
        number(gain, sign=True),
        class_="total",
    )


def alternatives_brief(document: MixtureFile, model: Model | None) -> Html | None:
    """The alternatives by gain, in a few rows."""
    scored = sorted((a for a in document.alternatives if a.gain is not None), key=lambda a: -(a.gain or 0.0))[
        :TOP_ALTERNATIVES
    ]
    if not scored:
        return None
    name = reference_name(document)
    law = "predicted " if document.decision is not None and document.decision.direct_gain is not None else ""
    against = f"{law}gain over {name}, nats" if name else "gain, nats"
    caption = join(["Alternatives", el("span", against, class_="legend")])
    return table(["Mixture", "", "Gain"], gain_rows(scored, document, model), caption=caption, class_="alt")


def candidates_brief(document: MixtureFile) -> Html | None:
    """The mixtures that probes were trained on to decide, by measured gain; bold: the recommended one."""
    found = document.evidence.get("candidates") or ()
    if not found or document.decision is None:
        return None
    joint = all("gain" in c for c in found)
    gains = {str(c["name"]): float(c["gain" if joint else "measured_gain"]) for c in found}
    gains |= {document.decision.reference: 0.0}
    scale, own = Scale.around(gains.values()), recommended(document)
    rows = []
    for name, gain in sorted(gains.items(), key=lambda item: -item[1]):
        label = f"{name}: gain {number(gain, sign=True)} nats"
        picture = whisker(gain, None, scale, label=label, kind="dot" if name == own else "dot plain")
        rows.append(row(name, picture, number(gain, sign=True), class_="own" if name == own else None))
    evidence = "" if joint else "measured "
    against = f"{evidence}gain over {document.decision.reference}, nats; bold: recommended"
    caption = join(["Trained candidates", el("span", against, class_="legend")])
    return table(["Mixture", "", "Gain"], rows, caption=caption, class_="alt")


def gain_rows(scored: Sequence[AlternativeEntry], document: MixtureFile, model: Model | None) -> list[Html]:
    """One dot-and-whisker row per alternative, all on one scale."""
    reach = [end for a in scored for end in (a.gain_interval or ())]
    scale = Scale.around([a.gain for a in scored], reach)
    noise = document.decision.noise if document.decision else None
    rows, own = [], recommended(document)
    for a in scored:
        label = (
            f"{a.name}: gain {number(a.gain, sign=True)} nats, interval {span(a.gain_interval, sign=True) or 'unknown'}"
        )
        dot = "dot" if a.name == own else "dot plain"
        name = join([a.name, _flag(a, model)])
        picture = whisker(a.gain, a.gain_interval, scale, label=label, noise=noise, kind=dot)
        rows.append(row(name, picture, number(a.gain, sign=True), class_="own" if a.name == own else None))
    return rows


def _flag(alternative: AlternativeEntry, model: Model | None) -> Html | None:
    """Why a mixture that scores well may still not be the proposal."""
    if not alternative.feasible:
        return el("small", " breaks a constraint", class_="flag")
    if model is None or not alternative.mixture:
        return None
    if model.position(model.vector(alternative.mixture)) is None:
        return el("small", " outside the searched mixtures")
    return None
