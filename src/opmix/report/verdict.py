"""The decision in words and its key figures: how sure, and what it cost."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from opmix.mixing.decided import Decision
from opmix.mixing.paired import gain_probability
from opmix.report.html import (
    Html,
    Scale,
    bar,
    count,
    duration,
    el,
    join,
    number,
    percent,
    scientific,
    signed,
    span,
    whisker,
)
from opmix.results.mixture import MixtureFile

SAME = 1e-6
"""Shares that differ by less are one mixture."""


def verdict(document: MixtureFile) -> Html:
    """The decision in words and its four key figures."""
    decision = document.decision
    heading, reason = "The mixture", ""
    if decision is not None:
        keep = decision.action == "keep"
        way = "half-way to" if recommended(document) == "halfway" else "to"
        heading = f"Keep the {decision.reference or 'current'} mixture" if keep else f"Move {way} the proposed mixture"
        reason = _sentence(decision.reason)
        if decision.direct_gain is not None:
            reason = signed(reason)
    figures = [
        *_confidence_figures(decision, document.interval_level, " of the targets" if document.targets else ""),
        *_cost_figures(document),
    ]
    if not any(document.cost.flops.values() if document.cost else ()) and document.laws:
        figures += _fit_figures(document)
    return join(
        [
            el("h1", heading),
            el("p", reason, class_="lead") if reason else None,
            el("dl", *figures, class_="keys") if figures else None,
        ]
    )


def recommended(document: MixtureFile) -> str:
    """Name of the mixture that the decision says to train on: an alternative's, or a trained candidate's."""
    decision = document.decision
    if decision is not None and decision.action == "keep":
        return decision.reference
    for candidate in document.evidence.get("candidates", ()):
        shares = candidate["mixture"]
        if all(abs(shares.get(d, 0.0) - p) < SAME for d, p in document.mixture.items()):
            return str(candidate["name"])
    return "proposal"


def _sentence(reason: str) -> str:
    """The reason without the verdict that the heading has said already."""
    head, _, tail = reason.partition(": ")
    rest = tail if tail and (head == "move" or re.fullmatch(r"keep the \S+ mixture", head)) else reason
    return rest[:1].upper() + rest[1:]


def _key(name: str, value: str | Html, *notes: str | Html | None) -> Html:
    made = [el("dd", note, class_="note") for note in notes if note]
    return el("div", el("dt", name), el("dd", value, class_="value"), *made)


def _confidence_figures(decision: Decision | None, level: float, whose: str) -> list[Html]:
    if decision is None:
        return []
    if decision.joint_gain is not None:
        return _joint_figures(decision, decision.joint_gain, whose)
    if decision.direct_gain is not None:
        return _measured_figures(decision, decision.direct_gain, level, whose)
    made = []
    if decision.gain is not None:
        against = f"against {decision.reference}" if decision.reference else "predicted"
        made.append(
            _gain_figure(
                f"Predicted gain{whose} {against}", decision.gain, decision.gain_interval, decision.noise or 0.0
            )
        )
    if decision.probability is not None:
        asked = f"{percent(decision.confidence, 0)} was asked for" if decision.confidence is not None else None
        noise = f"noise of this search {number(decision.noise)} nats" if decision.noise is not None else None
        made.append(
            _key(
                "Probability that it is better",
                percent(decision.probability, 0),
                _meter(decision.probability, decision.confidence),
                asked,
                noise,
            )
        )
    return made


def _gain_figure(name: str, gain: float, interval: Sequence[float] | None, noise: float, *notes: str) -> Html:
    better = percent(1 - math.exp(-gain))
    low_high = f"{span(interval, sign=True)} nats" if interval else None
    scale = Scale.around([gain, noise, -noise], interval or ())
    label = f"gain {number(gain, sign=True)} nats, interval {low_high or 'unknown'}"
    return _key(
        name,
        join([number(gain, sign=True), el("small", " nats per token")]),
        whisker(gain, interval, scale, label=label, noise=noise),
        low_high,
        f"{better} lower perplexity" if gain > 0 else None,
        *notes,
    )


def _joint_figures(decision: Decision, gain: float, whose: str) -> list[Html]:
    """Gain and probability by law and trained probes together; what each of the two said is a note."""
    direct, error = decision.direct_gain or 0.0, decision.direct_error or 0.0
    probability = decision.known_probability
    return [
        _gain_figure(
            f"Gain{whose} against {decision.reference}",
            gain,
            decision.joint_interval,
            0.0,
            f"by the law {number(decision.gain, sign=True)} nats, {span(decision.gain_interval, sign=True)}",
            f"between two probes {number(direct, sign=True)} \u00b1 {number(error)} nats, "
            "worth more after the whole stage",
        ),
        _key(
            "Probability that it is better",
            percent(probability, 0),
            _meter(probability, decision.confidence) if math.isfinite(probability) else None,
            f"{percent(decision.confidence, 0)} was asked for",
            f"by the law alone {percent(decision.probability, 0)}",
        ),
    ]


def _measured_figures(decision: Decision, gain: float, level: float, whose: str) -> list[Html]:
    """Gain and probability of probes really trained on both mixtures; what the law said is a note."""
    error = math.nan if decision.direct_error is None else decision.direct_error
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    ends = (gain - reach, gain + reach) if math.isfinite(reach) else None
    law = f"predicted by the law: {number(decision.gain, sign=True)} nats, {span(decision.gain_interval, sign=True)}"
    probability = gain_probability(gain, error)
    return [
        _gain_figure(
            f"Measured gain{whose} against {decision.reference}",
            gain,
            ends,
            0.0,
            f"one probe trained on each, standard error {number(error)}",
            law,
        ),
        _key(
            "Probability that it is better",
            percent(probability, 0),
            _meter(probability, decision.confidence) if math.isfinite(probability) else None,
            f"{percent(decision.confidence, 0)} was asked for",
            f"by the law alone {percent(decision.probability, 0)}",
        ),
    ]


def _meter(probability: float, asked: float | None) -> Html:
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
