"""Results as a notebook shows them: a small table, the decision in a sentence, what it cost. No styles, no scripts.

Built from the documents that a run leaves on disk (`mixture.json`, `life.json`), so that what is shown is what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix.report.html import Html, count, el, join, number, percent, row, scientific, span, table


def decision_html(content: Mapping[str, Any]) -> Html:
    """The content of a `mixture.json`: shares with intervals, decision, cost, notes."""
    level = percent(content["interval_level"], 0)
    rows = [
        row(domain, number(share), number(content["optimum"][domain]), span(content["interval"].get(domain)))
        for domain, share in content["mixture"].items()
    ]
    return join(
        [
            table(["domain", "mixture", "optimum", f"{level} interval"], rows, caption="Token shares"),
            el("p", el("strong", content["decision"]["reason"])),
            _paragraph(_cost_sentence(content.get("cost") or {})),
            *(_paragraph(f"note: {note}") for note in content.get("notes", ())),
        ]
    )


def life_html(content: Mapping[str, Any]) -> Html:
    """The content of a `life.json`: a table for every stage of every seed."""
    parts: list[Html] = []
    for seed, life in content["seeds"].items():
        which = f", seed {seed}" if len(content["seeds"]) > 1 else ""
        for position, stage in enumerate(life["stages"], 1):
            parts += _stage(f"Stage {position}: {stage['name']}{which}, {count(stage['tokens'])} tokens", stage)
    return join(parts)


def _stage(caption: str, stage: Mapping[str, Any]) -> list[Html]:
    decided = [part for part in stage["parts"] if part["decided"]]
    interval = decided[-1]["interval"] if decided else {}
    rows = [
        row(
            domain,
            number(stage["mixture"].get(domain, 0.0)),
            span(interval.get(domain)),
            number(loss["before"]),
            number(loss["after"]),
            number(stage["forgetting"][domain], sign=True) if domain in stage["forgetting"] else "",
        )
        for domain, loss in stage["losses"]["test"].items()
    ]
    head = ["domain", "share", "interval", "test loss before", "after", "forgotten"]
    search = percent(stage["cost"]["search_share"])
    return [
        table(head, rows, caption=caption),
        *(el("p", el("strong", f"step {part['steps'][0]}: {part['reason']}")) for part in decided),
        *([el("p", f"The search cost {search} of the stage's training FLOPs.")] if decided else []),
    ]


def _cost_sentence(cost: Mapping[str, Any]) -> str | None:
    flops = {purpose: amount for purpose, amount in (cost.get("flops") or {}).items() if purpose != "stage"}
    if not flops:
        return None
    share = cost.get("search_share")
    against = "" if share is None else f", {percent(share)} of the stage's training"
    return f"The search cost {scientific(sum(flops.values()))} FLOPs{against}."


def _paragraph(text: str | None) -> Html | None:
    return None if text is None else el("p", text)


__all__ = ["decision_html", "life_html"]
