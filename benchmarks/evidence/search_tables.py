"""Tables of whole searches by the present default: mixtures for targets, and the continual stages again."""

from __future__ import annotations

from typing import Any

import numpy as np
from figures import results
from table import table

CONFIRMING, LARGER, MEASURED = 7, 10**6, 10
"""First seed that nothing was chosen on; parameters of the larger models; first seed since limits count as measured."""


def targets() -> str:
    """Perplexity against uniform, percent: each single target, and the mean of all of a pool, by method and set of cells."""
    rows = results("targets", "rows")
    parts = []
    for name, some in {
        "choosing cells": [r for r in rows if r["seed"] < CONFIRMING],
        "confirming cells": [r for r in rows if r["seed"] >= CONFIRMING and r["parameters"] < LARGER],
        "cells of 1.1 M": [r for r in rows if r["parameters"] >= LARGER and r["seed"] < MEASURED],
        "cells of 1.1 M, limits as measured": [r for r in rows if r["seed"] >= MEASURED],
    }.items():
        for kind in ("single targets", "mean of all"):
            mine = [r for r in some if (r["targets"] == "mean") == (kind != "single targets")]
            if mine:
                parts.append(_of_targets(f"{kind}, {name}", mine))
        told = [r for r in some if "covered" in r]
        times = float(np.median([r["told_gain"][0] / r["gain"] for r in told]))
        aside = [r["risen"][domain] for r in told for domain in r["put_aside"]]
        if aside:
            searches = sum(bool(r["put_aside"]) for r in told)
            changed = f"{min(aside):+.1f} to {max(aside):+.1f} %"
            parts.append(
                f"{name}: optimum put aside in {searches} searches for {len(aside)} domains, which changed by {changed}"
            )
        held = f"{sum(r['covered'] for r in told)} of {len(told)}"
        parts.append(
            f"{name}: 90 % interval of the optimum's gain holds it in {held}; told over true, median: {times:.1f}"
        )
    return "\n\n".join(parts)


def _of_targets(title: str, rows: list[dict[str, Any]]) -> str:
    lines = []
    for method in dict.fromkeys(r["method"] for r in rows):
        told = [r for r in rows if r["method"] == method]
        gains = [r["perplexity_vs_uniform"] for r in told]
        others = [r["others"] for r in told if r["others"] is not None]
        kept = f"{sum(r['limits_kept'] for r in told)} of {len(told)}"
        cost = [f"{r['search_share']:.1f}" for r in told if "search_share" in r][:1]
        figures = [f"{x:+.1f} %" for x in (np.median(gains), np.mean(gains), max(gains))]
        stays = sum(max(r["mixture"].values()) - min(r["mixture"].values()) < 1e-3 for r in told)
        aside = f"{np.mean(others):+.1f} %" if others else ""
        lines.append((method, *figures, aside, kept, f"{stays} of {len(told)}", *(cost or [""])))
    head = ("method", "median", "mean", "worst", "other targets", "limits kept", "is uniform", "search / stage")
    cells = len({(r["pool"], r["seed"]) for r in rows})
    return f"{title}: {cells} cells, {len({(r['pool'], r['seed'], r['targets']) for r in rows})} decisions\n\n{table(head, lines)}"


def again() -> str:
    """Continual stages searched by the present default, beside the same stages by the default of 2026-11-25."""
    before = {(c["stage"], c["seed"]): c for c in results("regret", "cells")}
    cells = results("again", "cells")
    lines = []
    for c in cells:
        old = before[c["stage"], c["seed"]]
        low, high = c["interval"]
        figures = (f"{old['regret']:+.2%}, {c['regret']:+.2%}", f"{c['followed_regret']:+.2%}")
        said = f"{old['action']}, {c['action']}"
        share = f"{c['proposal']:.2f} ({low:.2f}-{high:.2f})"
        cost = f"{old['search_share_of_flops']:.0%}, {c['search_share_of_flops']:.0%}"
        lines.append((c["stage"], c["seed"], share, c["best_of_grid"], *figures, said, cost))
    regrets, followed = ([c[k] for c in cells] for k in ("regret", "followed_regret"))
    held = sum(c["interval"][0] <= c["best_of_grid"] <= c["interval"][1] for c in cells)
    ratio = np.mean(
        [c["search_share_of_flops"] / before[c["stage"], c["seed"]]["search_share_of_flops"] for c in cells]
    )
    head = (
        "stage",
        "seed",
        "proposal (90 %)",
        "grid's best",
        "regret: before, now",
        "of what is said now",
        "said",
        "search / stage",
    )
    return (
        f"{table(head, lines)}\n\n{len(cells)} stages: regret {np.mean(regrets):+.3%} in the mean, {max(regrets):+.2%} at worst; "
        f"of what was said {np.mean(followed):+.3%}, {max(followed):+.2%}; the interval holds the grid's best in {held}; a search "
        f"takes {ratio:.2f} of the FLOPs it took"
    )
