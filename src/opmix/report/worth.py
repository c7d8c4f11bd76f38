"""What a token of each domain is worth to each evaluation set, as the law in effective tokens found it: a shaded table."""

from __future__ import annotations

import numpy as np

from opmix.mixing.effective_tokens import EffectiveTokensDraws, EffectiveTokensLaw
from opmix.mixing.mixture import FloatArray
from opmix.report.html import Html, el, join, number, percent, table
from opmix.report.model import Model

SHADES = 4
MOST = 64
"""Rows and columns that are shown."""
SURE = 0.95
"""Share of the law's draws in which a domain is worth more than the average one, for it to be marked."""
UPRIGHT = 8
"""Domains beyond which the columns' names stand on end."""


def own_domains(law: EffectiveTokensLaw) -> list[int]:
    """The domain that each set's worths are told by: of the same name, else the best; (E,)."""
    best = law.worth.argmax(axis=1)
    return [law.domains.index(m) if m in law.domains else int(best[e]) for e, m in enumerate(law.metrics)]


def relative_worth(law: EffectiveTokensLaw) -> FloatArray:
    """Tokens of the own domain that buy as much as one token of each domain, where as many of either are seen, (E, D).

    x tokens buy `worth x^rho`, so `(worth / worth_own)^(1 / rho)` of the own domain's buy as much as one.
    """
    worth = np.maximum(law.worth, 1e-300)
    own = worth[np.arange(len(worth)), own_domains(law)]
    ratio: FloatArray = np.minimum(worth / own[:, None], 1e9) ** (1 / law.rho)
    return ratio


def above_average(draws: EffectiveTokensDraws) -> FloatArray:
    """Share of the draws in which a token of each domain is worth more to each set than one of the average domain, (E, D)."""
    share: FloatArray = (draws.worth > draws.worth.mean(axis=2, keepdims=True)).mean(axis=0)
    return share


def worth_section(model: Model) -> Html | None:
    """The table; None for a law that knows no worth."""
    law = model.law
    if not isinstance(law, EffectiveTokensLaw):
        return None
    ratio, own, domains = relative_worth(law), own_domains(law), law.domains[:MOST]
    draws = model.draws if isinstance(model.draws, EffectiveTokensDraws) else None
    sure = above_average(draws) >= SURE if draws is not None else np.zeros(ratio.shape, bool)
    # Sets that are no domain first: they are what somebody asks about.
    order = sorted(range(len(law.metrics)), key=lambda e: law.metrics[e] in law.domains)
    rows = [
        el(
            "tr",
            el("th", law.metrics[e], scope="row"),
            *(_cell(ratio[e, d], d == own[e], bool(sure[e, d])) for d in range(len(domains))),
        )
        for e in order[:MOST]
    ]
    legend = el("span", "percent of a token of the eval set's own domain", class_="legend")
    caption = join(["Worth of one token", legend])
    kind = "matrix worth" if len(domains) <= UPRIGHT else "matrix worth upright"
    words = (
        "How many tokens of an eval set's own domain (bold; the best one, for a set that has none) one token of each "
        "domain replaces, in percent, where as many of either are seen. Darker is worth more. Returns within a domain "
        f"diminish: twice its tokens count {number(2**law.rho, 2)} times as much."
    )
    if draws is not None:
        words += f" A dot: worth more than the average domain in {percent(SURE, 0)} of the law's draws."
    if max(len(law.domains), len(law.metrics)) > MOST:
        words += (
            f" Shown: the first {len(rows)} of {len(law.metrics)} sets, {len(domains)} of {len(law.domains)} domains."
        )
    return el(
        "section",
        el("h2", "What a token is worth"),
        el("p", words, class_="caption"),
        table(["Eval set", *domains], rows, caption=caption, class_=kind),
        id="worth",
    )


def _cell(ratio: float, own: bool, sure: bool) -> Html:
    shade = round(SHADES * min(float(ratio), 1.0))
    text = (number(100 * float(ratio), 0) if ratio < 10 else ">1000") + (" ·" if sure else "")
    return el("td", el("b", text) if own else text, class_=f"down{shade}" if shade else None)
