"""The tables of docs/evidence.md, printed from results/*.json.

python benchmarks/evidence/tables.py [regret again surfaces forgetting retraining pretraining merge_only ...]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from figures import RESULTS, even, million, regret_at, results
from search_tables import again, targets
from table import spread, table


def regret() -> str:
    cells = results("regret", "cells")
    parts = []
    groups = [
        ("regret.py, 1.1 M", [c for c in cells if "domains" not in c and c["model_size"] > 1e6]),
        ("regret.py, 0.34 M", [c for c in cells if "domains" not in c and c["model_size"] < 1e6]),
        ("five_stages.py, 0.34 M", [c for c in cells if "domains" in c]),
    ]
    for name, found in groups:
        if found:
            own, replay = [np.array([c[k] for c in found]) for k in ("regret", "replay_regret")]
            hit = sum(c["interval"][0] <= c["best_of_grid"] <= c["interval"][1] for c in found)
            share = np.mean([c["search_share_of_flops"] for c in found])
            error, kl = (float(np.mean([abs(c[k]) for c in found])) for k in ("interpolation_error", "kl"))
            parts.append(
                [
                    name,
                    len(found),
                    f"{own.mean():.2%}",
                    f"{own.max():.2%}",
                    other(found, even),
                    other(found, lambda _: 0.5),
                    f"{replay.mean():.2%}",
                    f"{replay.min():.2%} to {replay.max():.2%}",
                    f"{hit} of {len(found)}",
                    f"{error:.3f}",
                    f"{kl:.3f}",
                    f"{share:.0%}",
                ]
            )
    head = [
        "cells",
        "n",
        "mean regret",
        "worst",
        "share 1/n (worst)",
        "half new (worst)",
        "10 % replay, mean",
        "its range",
        "interval holds the grid's best",
        "trained - interpolated, nats",
        "KL",
        "search / stage FLOPs",
    ]
    each = [
        [
            c["stage"],
            c["seed"],
            million(c["model_size"]),
            f"{c['proposal']:.3f} ({c['interval'][0]:.2f}-{c['interval'][1]:.2f})",
            c["best_of_grid"],
            f"{c['regret']:+.2%}",
            f"{c['replay_regret']:.2%}",
            f"{c['interpolation_error']:+.3f}",
            f"{c['kl']:.3f}",
            c["action"],
            followed(c),
        ]
        for c in cells
    ]
    columns = [
        "stage",
        "seed",
        "parameters",
        "proposal (90 %)",
        "grid's best",
        "regret",
        "10 % replay",
        "trained - interpolated",
        "KL",
        "said",
        "regret of that",
    ]
    lives = [c for c in cells if "domains" in c]
    grown = [
        [
            n,
            *(spread([100 * c[k] for c in lives if c["domains"] == n], ".2f") for k in ("regret", "replay_regret")),
            spread([c["proposal"] for c in lives if c["domains"] == n], ".2f"),
        ]
        for n in sorted({c["domains"] for c in lives})
    ]
    growth = table(["domains known", "regret, %", "regret of 10 % replay, %", "proposed share of the new"], grown)
    return "\n\n".join([table(head, parts), growth, table(columns, each)])


def other(cells: list[dict[str, Any]], share: Callable[[dict[str, Any]], float]) -> str:
    """Mean and worst regret of a rule of thumb."""
    values = [regret_at(c, share(c)) for c in cells]
    return f"{np.mean(values):.2%} ({max(values):.2%})"


def followed(cell: dict[str, Any]) -> str:
    """Regret of what the search said; older cells have it only where it said move."""
    value = cell.get("followed_regret", cell["regret"] if cell["action"] == "move" else None)
    return "" if value is None else f"{value:+.2%}"


def surfaces() -> str:
    rows = results("surfaces")
    each = [
        [
            r["stage"],
            r["seed"],
            million(r["model_size"]),
            f"{r['level']:+.3f}",
            f"{r['shape_error']:.4f}",
            f"{r['range']:.3f}",
            f"{r['spearman']:.2f}",
            f"{r['simulated_optimum']:.2f} / {r['true_optimum']:.2f}",
            f"{r['regret']:.2%}",
        ]
        for r in rows
    ]
    head = [
        "stage",
        "seed",
        "parameters",
        "level, nats",
        "shape error, nats (rms)",
        "range of the true",
        "Spearman",
        "optimum simulated / true",
        "regret of the simulated best",
    ]
    sums = []
    for size in sorted({r["model_size"] for r in rows}, reverse=True):
        some = [r for r in rows if r["model_size"] == size]
        off = [abs(r["simulated_optimum"] - r["true_optimum"]) for r in some]
        sums.append(
            [
                million(size),
                len(some),
                spread([r["shape_error"] for r in some], ".3f"),
                spread([r["range"] for r in some], ".3f"),
                spread([r["spearman"] for r in some], ".2f"),
                spread(off, ".3f"),
                f"{max(off):.3f}",
                spread([100 * r["regret"] for r in some], ".2f"),
            ]
        )
    columns = [
        "parameters",
        "surfaces",
        "shape error, nats",
        "range of the true",
        "Spearman",
        "optimum off by",
        "worst",
        "regret, %",
    ]
    return "\n\n".join([table(columns, sums), table(head, each)])


def forgetting() -> str:
    rows = results("forgetting")
    ways = {
        "sequential": "new data only",
        "replay": "10 % replay",
        "replay_even": "10 %, even",
        "uniform": "uniform",
        "opmix": "OP-Mix",
    }
    keys = [(k, "+.3f") for k in ("per_stage", "per_stage_worst", "at_end", "at_end_worst")]
    keys += [("new_domain", ".3f"), ("all_at_end", ".3f")]
    found = {way: [r for r in rows if r["way"] == way] for way in ways}
    lines = [[ways[w], *(spread([r[k] for r in some], form) for k, form in keys)] for w, some in found.items() if some]
    head = [
        "way",
        "rise a stage, mean",
        "worst",
        "rise from learned to the end, mean",
        "worst",
        "loss on a new domain after its stage",
        "mean loss at the end",
    ]
    by = []
    for d in sorted({d for r in rows for d in r["at_end_by_domain"]}):
        each = [[r["at_end_by_domain"][d] for r in some if d in r["at_end_by_domain"]] for some in found.values()]
        by.append([d, *(spread(values, "+.3f") if values else "" for values in each)])
    return "\n\n".join([table(head, lines), table(["domain", *ways.values()], by)])


def retraining() -> str:
    rows = results("retraining")
    lines = []
    for r in rows:
        flops = r["flops"]
        gaps = ", ".join(f"{s['gap']:+.2%}" for s in r["stages"])
        where = ", ".join(str(s["stage"]) for s in r["stages"])
        lines.append(
            [
                f"{r['order']}, seed {r['seed']}, rate {r['rate']:g}",
                f"{where}: {gaps}",
                f"{flops['base'] + flops['training']:.2e}",
                f"{flops['search']:.2e}",
                f"{flops['retraining']:.2e}",
                f"{r['saved']:.0%}",
                f"{r['saved_without_search']:.0%}",
            ]
        )
    head = [
        "life",
        "loss against retraining, after stage",
        "FLOPs of the life",
        "of its searches",
        "of retraining",
        "saved",
        "saved, searches free",
    ]
    return table(head, lines)


def pretraining() -> str:
    lines = []
    for r in results("pretraining"):
        uniform, told = np.mean(list(r["losses"]["uniform"].values())), r["searches"]
        for arm, losses in r["losses"].items():
            loss = float(np.mean(list(losses.values())))
            said = told.get(arm.removesuffix(", optimum"), {})
            mixture = mixture_of(r, arm)
            shares = " ".join(f"{s:.2f}" for s in mixture.values()) if mixture else "0.20 each"
            cells = [r["arguments"]["set"], r["seed"], arm, shares, said.get("action", "")]
            steps = r["longer_steps" if arm == "longer" else "stage_steps"]
            changes = [f"{np.expm1(loss - uniform):+.2%}", f"{r['perplexity_change'][arm]:+.2%}"]
            lines.append([*cells, steps, f"{loss:.4f}", f"{uniform - loss:+.4f}", *changes])
    head = ["set", "seed", "arm", "mixture", "said", "steps", "mean loss", "gain over uniform"]
    return table([*head, "geometric perplexity", "mean perplexity"], lines)


def mixture_of(row: dict[str, Any], arm: str) -> dict[str, float] | None:
    """Shares that an arm of `pretraining` was trained on; None: even."""
    if arm == "size":
        whole = sum(row["available"].values())
        return {n: tokens / whole for n, tokens in row["available"].items()}
    name = arm.removesuffix(", optimum")
    if name not in row["searches"]:
        return None
    told = row["searches"][name]
    found: dict[str, float] = told["optimum" if name != arm or "mixture" not in told else "mixture"]
    return found


def merge_only() -> str:
    rows = results("merge_only")
    lines = [
        [
            r["stage"],
            r["seed"],
            "1.1 M" if r["width"] == 128 else "0.34 M",
            *(
                f"{r['losses'][k]:.3f}" if k in r["losses"] else ""
                for k in ("base", "merged", "adapter", "merged_long", "trained")
            ),
            f"{math.exp(r['losses']['merged'] - r['losses']['trained']) - 1:+.0%}",
        ]
        for r in rows
    ]
    head = [
        "stage",
        "seed",
        "parameters",
        "before",
        "probes merged",
        "one adapter on the optimum",
        "long probes merged",
        "trained",
        "perplexity merged / trained",
    ]
    return table(head, lines)


def sensitivity() -> str:
    lines = []
    for r in results("sensitivity"):
        inner = [v if isinstance(v, dict) else {k: v} for k, v in r["change"].items()]
        value = next(iter(inner[0].values())) if inner else "defaults"
        low, high = r["interval"]
        proposal = f"{r['proposal']:.3f} ({low:.2f}-{high:.2f})"
        lines.append([r["stage"], r["setting"], value, proposal, f"{r['regret']:.3%}", f"{r['search_share']:.0%}"])
    return table(["stage", "setting", "value", "proposal (90 %)", "regret", "search / stage FLOPs"], lines)


def adding() -> str:
    lines, told = [], results("adding")
    variants = [
        v for v in ("default", "pure", "pure, arbiter") if all(v in r for r in told)
    ]  # the last two are gone from the product
    for r in told:
        cells = []
        for name in variants:
            said, gain = r[name], r[name].get("direct_gain")
            numbers = f"{said['predicted_gain']:+.3f}, {said['probability']:.0%}"
            numbers = f"{gain:+.3f} measured" if "arbiter" in name and gain is not None else numbers
            cells.append(f"{said['action']} ({numbers})")
        kept = r["without"] / r["best"] - 1
        lines.append([f"{r['order']} {r['stage']}", *cells, f"{r['default']['true_gain']:+.3f}", f"{kept:.1%}"])
    head = [
        "stage",
        *(f"{v} says (gain, probability)" for v in variants),
        "gain of full training on the optimum",
        "regret of leaving it out",
    ]
    return table(head, lines)


def predictors() -> str:
    """Of the confirming cells; predictors whose optima were not trained in every cell have no regret."""
    parts = []
    told = results("predictors", "summary")
    for size, objective in dict.fromkeys((r["size"], r["objective"]) for r in told):
        mine = [r for r in told if (r["size"], r["objective"]) == (size, objective)]
        lines = []
        for r in sorted(mine, key=lambda r: -r.get("r", [0.0])[0]):
            whole = r["trained"] == r["cells"]
            cells = [f"{r[k][0]:.2f} ({r[k][1]:.2f})" if k in r else "" for k in ("r", "spearman", "r_arms")]
            regrets = [
                f"{r[k][0]:{form}} ({r[k][1]:{form}})" if whole else ""
                for k, form in (("regret", ".2%"), ("against_uniform", "+.2%"))
            ]
            covered = [
                f"{r[k][0]:.0%}" if k in r and (whole or k != "covered") else ""
                for k in ("covered", "covered_mixtures")
            ]
            cost = f"{r['search_share'][0]:.1f}" if "search_share" in r else ""
            lines.append((r["predictor"], r["probes"], *cells, *regrets, *covered, cost))
        head = (
            "predictor",
            "probes",
            "r (worst)",
            "rank (worst)",
            "r, arms",
            "regret (worst)",
            "against uniform (worst)",
            "90 % holds: optimum",
            "mixtures",
            "search / stage",
        )
        parts.append(f"{objective}, {size}, {mine[0]['cells']} cells\n\n{table(head, lines)}")
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        regret,
        surfaces,
        forgetting,
        retraining,
        pretraining,
        merge_only,
        sensitivity,
        adding,
        predictors,
        targets,
        again,
    )
}


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        if (RESULTS / f"{name}.json").exists():
            print(f"## {name}\n\n{TABLES[name]()}\n")


if __name__ == "__main__":
    main()
