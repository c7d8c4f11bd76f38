"""The section of `opmix verify`: adapters trained on a mixture against the interpolation that stands for it."""

from __future__ import annotations

import math

import numpy as np

from opmix.report.figures import agreement_panel
from opmix.report.html import MINUS, Html, Scale, el, folded, join, number, percent, row, table, whisker
from opmix.results.verification import VerificationFile, VerifiedPoint

_NORMAL_90 = 1.645


def verified(made: VerificationFile) -> Html | None:
    """Loss difference and divergence by eval set, agreement over mixtures, and what refining gave."""
    if not made.points:
        return None
    first, *rest = made.points
    more = [folded(f"{p.name}: trained {MINUS} interpolated", _differences(p)) for p in rest]
    return el(
        "section",
        el("h2", "Is the simulation true?"),
        el("p", made.sentence, class_="lead"),
        el("div", el("div", _differences(first), *more), _agreement(made), class_="split side"),
        _refinement(made),
        id="verified",
    )


def _differences(point: VerifiedPoint) -> Html:
    """Direct minus interpolated, with its 90 % interval, and the divergence of predictions."""
    found = {m: point.direct[m] - point.proxy.get(m, math.nan) for m in point.direct}
    errors = {m: point.standard_error.get(m, math.nan) for m in found}
    ends = [found[m] + s * _NORMAL_90 * errors[m] for m in found for s in (-1, 1)]
    scale = Scale.around([*found.values()], [e for e in ends if math.isfinite(e)])
    rows = []
    for metric, value in found.items():
        error = errors[metric]
        interval = (value - _NORMAL_90 * error, value + _NORMAL_90 * error) if math.isfinite(error) else None
        label = f"{metric}: trained minus interpolated {number(value, 4, sign=True)} nats"
        picture = whisker(value, interval, scale, label=label)
        cells = [number(point.direct[metric]), number(value, 4, sign=True), number(point.kl.get(metric), 4)]
        rows.append(row(metric, picture, *cells))
    legend = el("span", "nats per token; whiskers 90 %, paired over held-out sequences", class_="legend")
    caption = join([f"{point.name}: the adapter trained on it {MINUS} its interpolation", legend])
    return table(["Eval set", "", "Trained", "Difference", "KL"], rows, caption=caption, class_="verified")


def _agreement(made: VerificationFile) -> Html | None:
    """Objective by the law against measured, over all directly trained mixtures; levels as they are."""
    if len(made.measured) < 2:
        return None
    law = np.array([m.law for m in made.measured])
    direct = np.array([m.direct for m in made.measured])
    errors = np.array([m.standard_error for m in made.measured])
    art = agreement_panel(
        law,
        direct,
        errors,
        xlabel="by the law",
        ylabel="trained directly",
        label=f"objective by the law against directly trained, {len(law)} mixtures",
    )
    order = " < ".join(m.name for m in sorted(made.measured, key=lambda m: m.direct))
    return el("figure", el("figcaption", el("b", "Directly trained mixtures"), el("span", order)), art)


def _refinement(made: VerificationFile) -> Html | None:
    found = made.refinement
    if not found:
        return None
    shares = found.get("mixture") or {}
    rows = [row(str(d), percent(float(s))) for d, s in shares.items()]
    return join(
        [
            el("h3", "Refined"),
            el("p", f"{found.get('reason', '')}."),
            table(["Domain", "Share"], rows, caption="Mixture after refining", class_="narrow") if rows else None,
        ]
    )
