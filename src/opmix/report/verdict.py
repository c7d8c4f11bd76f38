"""The decision in words and its key figures: how sure, and what it cost."""

from __future__ import annotations

import math
import re

import numpy as np

from opmix.mixing.decision import Decision
from opmix.report.html import Html, Scale, bar, count, duration, el, join, number, percent, scientific, span, whisker
from opmix.results.mixture import MixtureFile


def verdict(document: MixtureFile) -> Html:
    """The decision in words and its four key figures."""
    decision = document.decision
    heading, reason = "The mixture", ""
    if decision is not None:
        keep = decision.action == "keep"
        heading = f"Keep the {decision.reference or 'current'} mixture" if keep else "Move to the proposed mixture"
        reason = _sentence(decision.reason)
    figures = [*_confidence_figures(decision), *_cost_figures(document)]
    if not any(document.cost.flops.values() if document.cost else ()) and document.laws:
        figures += _fit_figures(document)
    return join(
        [
            el("h1", heading),
            el("p", reason, class_="lead") if reason else None,
            el("dl", *figures, class_="keys") if figures else None,
        ]
    )


def _sentence(reason: str) -> str:
    """The reason without the verdict that the heading has said already."""
    head, _, tail = reason.partition(": ")
    rest = tail if tail and (head == "move" or re.fullmatch(r"keep the \S+ mixture", head)) else reason
    return rest[:1].upper() + rest[1:]


def _key(name: str, value: str | Html, *notes: str | Html | None) -> Html:
    made = [el("dd", note, class_="note") for note in notes if note]
    return el("div", el("dt", name), el("dd", value, class_="value"), *made)


def _confidence_figures(decision: Decision | None) -> list[Html]:
    if decision is None:
        return []
    made = []
    if decision.gain is not None:
        against = f"against {decision.reference}" if decision.reference else "predicted"
        better = percent(1 - math.exp(-decision.gain))
        low_high = f"{span(decision.gain_interval, sign=True)} nats" if decision.gain_interval else None
        width = decision.noise or 0.0
        scale = Scale.around([decision.gain, width, -width], decision.gain_interval)
        label = f"gain {number(decision.gain, sign=True)} nats, interval {low_high or 'unknown'}"
        picture = whisker(decision.gain, decision.gain_interval, scale, label=label, noise=decision.noise)
        made.append(
            _key(
                f"Predicted gain {against}",
                join([number(decision.gain, sign=True), el("small", " nats per token")]),
                picture,
                low_high,
                f"{better} lower perplexity" if decision.gain > 0 else None,
                _measured(decision),
            )
        )
    if decision.probability is not None:
        asked = f"{percent(decision.confidence, 0)} was asked for" if decision.confidence is not None else None
        noise = f"noise of this search {number(decision.noise)} nats" if decision.noise is not None else None
        made.append(
            _key(
                "Probability that it is better",
                percent(decision.probability, 0),
                _meter(decision),
                asked,
                noise,
            )
        )
    return made


def _measured(decision: Decision) -> str | None:
    """The gain of a probe really trained on the optimum, where one was."""
    if decision.direct_gain is None:
        return None
    error = "" if decision.direct_error is None else f", standard error {number(decision.direct_error)}"
    return f"measured on a probe of its own: {number(decision.direct_gain, sign=True)} nats{error}"


def _meter(decision: Decision) -> Html:
    probability, asked = decision.probability or 0.0, decision.confidence
    label = f"probability {percent(probability, 0)}"
    ticks = [(asked, "tick-now")] if asked is not None else []
    return bar(probability, None, Scale(0, 1), label=label, ticks=ticks)


def _cost_figures(document: MixtureFile) -> list[Html]:
    cost = document.cost
    if cost is None:
        return []
    # What the stage itself will cost is stated beside the search, never counted as the search's.
    flops = {k: v for k, v in cost.flops.items() if k != "stage"}
    tokens = {k: v for k, v in cost.tokens.items() if k != "stage"}
    made = []
    if flops:
        share = f"{percent(cost.search_share)} of the stage's training" if cost.search_share is not None else None
        parts = " + ".join(f"{k} {scientific(v)}" for k, v in flops.items())
        made.append(
            _key(
                "Cost of the search",
                join([scientific(sum(flops.values())), el("small", " FLOPs")]),
                share,
                parts,
            )
        )
    if tokens or cost.seconds:
        time = f"{duration(sum(cost.seconds.values()))} wall time" if cost.seconds else None
        steps = " + ".join(f"{k} {duration(v)}" for k, v in cost.seconds.items() if v >= 1)
        if tokens:
            made.append(
                _key("Tokens and time", join([count(sum(tokens.values())), el("small", " tokens")]), time, steps)
            )
        else:
            made.append(_key("Time", duration(sum(cost.seconds.values())), steps))
    return made


def _fit_figures(document: MixtureFile) -> list[Html]:
    laws = list(document.laws.values())
    points = max((law.num_points or 0 for law in laws), default=0)
    about = f"{len(laws)} eval sets, {len(document.mixture)} domains"
    made = [_key("Fitted on", join([str(points), el("small", " runs")]), about)] if points else []
    ranks = [law.loo_spearman for law in laws if law.loo_spearman is not None]
    errors = [law.loo_rmse for law in laws if law.loo_rmse is not None]
    if ranks:
        note = f"worst {number(min(ranks))}"
        if errors:
            note += f" · error {number(float(np.mean(errors)), 4)} nats"
        made.append(_key("Rank correlation left out", number(float(np.mean(ranks))), note))
    return made
