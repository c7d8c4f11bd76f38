"""The sections that are tables: comparison, alternatives, check, solver, configuration."""

from __future__ import annotations

import json
import math

import numpy as np

from opmix.report.document import ReportData
from opmix.report.figures import agreement_panel
from opmix.report.html import (
    MINUS,
    Html,
    Scale,
    count,
    duration,
    el,
    folded,
    join,
    number,
    percent,
    row,
    scientific,
    table,
    whisker,
)
from opmix.report.model import Model
from opmix.report.opening import gain_rows, reference_name
from opmix.results.demo import DemoComparison
from opmix.results.loss_limits import read_limits
from opmix.results.mixture import MixtureFile

MAX_TWIN_ROWS = 12
MAX_ARM_ROWS = 24
MANIFEST_LIMIT = 100_000


def comparison(made: DemoComparison, units: str) -> Html | None:
    """Predicted against measured: full trainings on equal tokens."""
    arms = {name: arm for name, arm in made.arms.items() if arm.measured}
    if not arms:
        return None
    against = "uniform" if "uniform" in arms else list(arms)[-1]
    metrics = list(dict.fromkeys(m for arm in arms.values() for m in arm.measured))
    rows = _arm_rows(made, list(arms), against, metrics)
    others = [name for name in arms if name != against]
    head = ["Eval set", *(f"{name} measured" for name in arms)]
    if others:
        head += ["", f"{others[0]} {MINUS} {against}", "Predicted"]
    note = f" · {count(made.tokens)} tokens each" if made.tokens else ""
    ticks = "; dot: measured difference, tick: predicted" if others else ""
    caption = join(["Measured held-out loss", el("span", f"{units}{note}{ticks}", class_="legend")])
    shown = table(head, rows[: MAX_ARM_ROWS + 1], caption=caption, class_="arms")
    rest = rows[MAX_ARM_ROWS + 1 :]
    more = folded(f"{len(rest)} more eval sets", table(head, rest, caption=caption, class_="arms")) if rest else None
    return el(
        "section",
        el("h2", "Predicted against measured"),
        el("p", made.sentence, class_="lead") if made.sentence else None,
        el("div", el("div", shown, more), _agreement(made, others, against, metrics), class_="split side"),
        id="measured",
    )


def _arm_rows(made: DemoComparison, names: list[str], against: str, metrics: list[str]) -> list[Html]:
    other = next((n for n in names if n != against), None)
    pairs: list[tuple[float, float]] = []
    for m in metrics:
        if other is None:
            pairs.append((math.nan, math.nan))
            continue
        a, b = made.arms[other], made.arms[against]
        pairs.append(
            (
                a.measured.get(m, math.nan) - b.measured.get(m, math.nan),
                a.predicted.get(m, math.nan) - b.predicted.get(m, math.nan),
            )
        )
    scale = Scale.around([v for pair in pairs for v in pair])
    means = [float(np.mean([made.arms[n].measured.get(m, math.nan) for m in metrics])) for n in names]
    mean_pair = (float(np.mean([p[0] for p in pairs])), float(np.mean([p[1] for p in pairs])))
    losses = {m: [made.arms[n].measured.get(m) for n in names] for m in metrics}

    def line(name: str, values: list[float | None] | list[float], pair: tuple[float, float], kind: str | None) -> Html:
        cells: list[str | Html] = [number(v) for v in values]
        if other is not None:
            cells += [_pair(name, pair, scale), number(pair[0], sign=True), number(pair[1], sign=True)]
        return row(name, *cells, class_=kind)

    return [
        line("Mean", means, mean_pair, "total"),
        *(line(m, losses[m], pair, None) for m, pair in zip(metrics, pairs, strict=True)),
    ]


def _pair(name: str, pair: tuple[float, float], scale: Scale) -> Html:
    """Measured difference as a dot, joined to a tick at the predicted one."""
    measured, predicted = pair
    label = f"{name}: measured {number(measured, sign=True)}, predicted {number(predicted, sign=True)} nats"
    ends = (measured, predicted) if math.isfinite(predicted) else None
    return whisker(measured, ends, scale, label=label, tick=predicted, kind="dot" if measured <= 0 else "dot worse")


def _agreement(made: DemoComparison, others: list[str], against: str, metrics: list[str]) -> Html | None:
    predicted, measured = [], []
    base = made.arms[against]
    for name in others:
        arm = made.arms[name]
        for m in metrics:
            if all(m in part for part in (arm.measured, arm.predicted, base.measured, base.predicted)):
                predicted.append(arm.predicted[m] - base.predicted[m])
                measured.append(arm.measured[m] - base.measured[m])
    if len(predicted) < 2:
        return None
    x, y = np.array(predicted), np.array(measured)
    art = agreement_panel(
        x,
        y,
        None,
        xlabel=f"predicted difference to {against}",
        ylabel="measured difference",
        zero=True,
        label=f"measured against predicted difference to {against} for {len(x)} eval sets",
    )
    error = f"root mean square error {number(float(np.sqrt(np.mean((x - y) ** 2))))} nats"
    same = int(np.sum(np.sign(x) == np.sign(y)))
    note = f"n = {len(x)} · {error} · same sign {same} of {len(x)}"
    return el("figure", el("figcaption", el("b", "Difference between the trainings"), el("span", note)), art)


def alternatives(document: MixtureFile, model: Model | None) -> Html | None:
    """Every scored mixture with its gain, its shares and its predictions."""
    if not document.alternatives:
        return None
    ordered = sorted(document.alternatives, key=lambda a: -(a.gain if a.gain is not None else -math.inf))
    name = reference_name(document)
    gains = [a for a in ordered if a.gain is not None]
    parts = []
    if gains:
        caption = f"Predicted gain over {name or 'the reference'}, nats; shaded: the noise of this search"
        parts.append(
            table(["Mixture", "", "Gain"], gain_rows(gains, document, model), caption=caption, class_="alt narrow")
        )
    notes = [el("li", el("b", a.name), f": {a.note}") for a in ordered if a.note]
    if notes:
        parts.append(el("ul", *notes, class_="notes"))
    shares = [a for a in ordered if a.mixture]
    domains = list(dict.fromkeys(d for a in shares for d in a.mixture or {}))
    rows = [row(d, *(percent((a.mixture or {}).get(d, 0.0)) for a in shares)) for d in domains]
    metrics = list(dict.fromkeys(m for a in ordered for m in a.predicted))
    scored = [a for a in ordered if a.predicted]
    losses = [row(m, *(number(a.predicted.get(m)) for a in scored)) for m in metrics]
    return el(
        "section",
        el("h2", "Alternatives"),
        *parts,
        folded(
            "Shares and predicted losses of every alternative",
            table(["Domain", *(a.name for a in shares)], rows, caption="Share of training tokens"),
            table(["Eval set", *(a.name for a in scored)], losses, caption=f"Predicted loss, {document.units}"),
        ),
        id="alternatives",
    )


def check(document: MixtureFile) -> Html | None:
    """Does the proxy loss depend on the mixture alone?"""
    made = document.check
    if made is None or not (made.available or made.verdict):
        return None
    explained = any(abs(v) > 1e-9 for twin in made.twins for v in twin.explained.values())
    found = [
        (metric, twin.a, twin.b, value, twin.standard_error.get(metric), twin.explained.get(metric))
        for twin in made.twins
        for metric, value in twin.difference.items()
    ]
    # The ones that speak most loudly against the assumption first.
    found.sort(key=lambda f: -abs(f[3]))
    noise = (document.decision.noise if document.decision else None) or 0.0
    ends = [v + s * (e or 0.0) * 1.645 for _, _, _, v, e, _ in found for s in (-1, 1)]
    scale = Scale.around([f[3] for f in found] + [f[5] for f in found if explained], [*ends, noise, -noise])
    rows = []
    for metric, a, b, value, error, known in found:
        whiskers = (value - 1.645 * error, value + 1.645 * error) if error is not None else None
        label = f"{metric}: {a} minus {b} {number(value, 4, sign=True)} nats"
        tick = known if explained else None
        picture = whisker(value, whiskers, scale, label=label, noise=noise, tick=tick)
        cells: list[str | Html] = [picture, number(value, 4, sign=True), number(error, 4)]
        cells += [number(known, 4, sign=True)] if explained else []
        rows.append(row(metric, f"{a} {MINUS} {b}", *cells))
    head = ["Eval set", "Twins: same mixture", "", "Difference", "Std. error", *(["In the law"] if explained else [])]
    words = "whiskers 90 %, shaded: the noise of this search"
    words += "; tick: what the law's interference term accounts for" if explained else ""
    legend = el("span", words, class_="legend")
    caption = join(["Loss difference, nats", legend])
    parts = [table(head, rows[:MAX_TWIN_ROWS], caption=caption, class_="twins")] if rows else []
    if len(rows) > MAX_TWIN_ROWS:
        rest = rows[MAX_TWIN_ROWS:]
        parts.append(folded(f"{len(rest)} smaller differences", table(head, rest, caption=caption, class_="twins")))
    return el(
        "section",
        el("h2", "Does the loss depend on the mixture alone?"),
        el("p", made.verdict, class_="lead") if made.verdict else None,
        el("p", f"Largest difference {number(made.worst, 4)} nats.", class_="caption")
        if made.worst is not None and made.twins
        else None,
        *parts,
        id="check",
    )


def certificate(document: MixtureFile) -> Html | None:
    """What was minimised, under what, and how near the answer is to the true optimum."""
    solver, settings = document.solver, document.settings
    varying = "loss" if settings.fit else "exp(t·p)"
    pairs: list[tuple[str, str]] = [
        ("Objective", f"{settings.objective.replace('_', ' ')} of {varying} over eval sets"),
        ("KL weight", number(settings.kl)),
    ]
    if solver is not None:
        if solver.status:
            pairs.append(("Status", solver.status))
        pairs += [
            (name, text)
            for name, value, text in (
                ("Value", solver.objective, number(solver.objective, 6)),
                ("At most this far from the optimum", solver.gap, f"{scientific(solver.gap)} nats"),
                ("Largest constraint violation", solver.max_violation, scientific(solver.max_violation)),
                ("Iterations", solver.iterations, str(solver.iterations)),
                ("Time", solver.seconds, duration(solver.seconds)),
            )
            if value is not None
        ]
    listed = [el("li", sentence) for sentence in settings.constraints]
    facts = el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in pairs), class_="facts")
    limits = join([el("h3", "Constraints"), el("ul", *listed)]) if listed else el("p", "No constraints were given.")
    made = el("div", facts, el("div", limits), class_="split")
    return el("section", el("h2", "Solver"), made, _loss_limits(document), id="solver")


def _loss_limits(document: MixtureFile) -> Html | None:
    """What is foretold of every limited loss at the recommended mixture."""
    told = read_limits(document.evidence)
    if not told:
        return None
    rows = [
        row(
            name,
            f"{number(e.limit, 1, sign=True)} %",
            f"{number(e.foretold, 1, sign=True)} %",
            f"{number(e.interval[0], 1, sign=True)} to {number(e.interval[1], 1, sign=True)} %",
            "binds" if e.binds and e.kept else "" if e.kept else "not kept for sure",
        )
        for name, e in told.items()
    ]
    caption = "Limits on losses, of the loss now, held by the upper end of the interval"
    return table(["Eval set", "At most", "Foretold", "Interval", ""], rows, caption=caption, class_="narrow")


def configuration(data: ReportData) -> Html | None:
    """Cost by purpose and the manifest, folded."""
    parts: list[Html] = []
    cost = data.document.cost
    if cost is not None:
        purposes = list(dict.fromkeys([*cost.tokens, *cost.flops, *cost.seconds]))
        rows = [
            row(p, count(cost.tokens.get(p)), scientific(cost.flops.get(p)), duration(cost.seconds.get(p)))
            for p in purposes
        ]
        if rows:
            parts.append(table(["Purpose", "Tokens", "FLOPs", "Time"], rows, caption="Ledger", class_="narrow"))
    if cost is not None and cost.stage_tokens:
        parts.append(el("p", f"The stage itself trains on {count(cost.stage_tokens)} tokens.", class_="caption"))
    if data.document.epochs:
        seen = [row(d, f"{number(e, 2)}") for d, e in data.document.epochs.items()]
        caption = "How often each domain's tokens are seen in the stage"
        parts.append(folded("Epochs per domain", table(["Domain", "Epochs"], seen, caption=caption, class_="narrow")))
    if data.document.notes:
        parts.append(el("ul", *(el("li", note) for note in data.document.notes), class_="notes"))
    if data.manifest is not None:
        text = json.dumps(data.manifest.content, indent=2, ensure_ascii=False, default=str)
        cut = f"\n… {len(text) - MANIFEST_LIMIT} more characters in manifest.json" if len(text) > MANIFEST_LIMIT else ""
        parts.append(
            folded(
                "Manifest: configuration, versions, seeds",
                el("pre", text[:MANIFEST_LIMIT] + cut, tabindex="0"),
            )
        )
    if not parts:
        return None
    return el("section", el("h2", "Cost and configuration"), *parts, id="configuration")
