"""Results as a notebook shows them: a small table, the decision in a sentence, what it cost. No styles, no scripts.

Built from the documents that a run leaves on disk (`mixture.json`, `life.json`), so that what is shown is what is written.
"""

from __future__ import annotations

from opmix.report.html import Html, count, el, join, number, percent, row, scientific, span, table
from opmix.results.life import LifeFile, StageEntry
from opmix.results.mixture import MixtureFile, SearchCost


def decision_html(found: MixtureFile) -> Html:
    """A `mixture.json`: shares with intervals, decision, cost, notes."""
    optimum = found.optimum or {}
    rows = [
        row(domain, number(share), number(optimum.get(domain)), span(found.interval.get(domain)))
        for domain, share in found.mixture.items()
    ]
    head = ["domain", "mixture", "optimum", f"{percent(found.interval_level, 0)} interval"]
    return join(
        [
            table(head, rows, caption="Token shares"),
            None if found.decision is None else el("p", el("strong", found.decision.reason)),
            None if found.cost is None else _cost(found.cost),
            *(el("p", f"note: {note}") for note in found.notes),
        ]
    )


def life_html(life: LifeFile) -> Html:
    """A `life.json`: a table for every stage of every seed."""
    parts: list[Html] = []
    for seed, lived in life.seeds.items():
        which = f", seed {seed}" if len(life.seeds) > 1 else ""
        for position, stage in enumerate(lived.stages, 1):
            parts += _stage(f"Stage {position}: {stage.name}{which}, {count(stage.tokens)} tokens", stage)
    return join(parts)


def _stage(caption: str, stage: StageEntry) -> list[Html]:
    decided = stage.decisions
    interval = decided[-1].interval if decided else {}
    rows = [
        row(
            domain,
            number(stage.mixture.get(domain, 0.0)),
            span(interval.get(domain)),
            number(loss.before),
            number(loss.after),
            number(stage.forgetting[domain], sign=True) if domain in stage.forgetting else "",
        )
        for domain, loss in stage.losses["test"].items()
    ]
    head = ["domain", "share", "interval", "test loss before", "after", "forgotten"]
    search = percent(stage.cost.search_share)
    return [
        table(head, rows, caption=caption),
        *(el("p", el("strong", f"step {part.steps[0]}: {part.reason}")) for part in decided),
        *([el("p", f"The search cost {search} of the stage's training FLOPs.")] if decided else []),
    ]


def _cost(cost: SearchCost) -> Html | None:
    flops = cost.total("flops", set(cost.flops) - {"stage"})
    if not flops:
        return None
    against = "" if cost.search_share is None else f", {percent(cost.search_share)} of the stage's training"
    return el("p", f"The search cost {scientific(flops)} FLOPs{against}.")


__all__ = ["decision_html", "life_html"]
