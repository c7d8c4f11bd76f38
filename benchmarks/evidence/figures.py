"""The figures of docs/evidence.md, drawn from results/*.json.

    python benchmarks/evidence/figures.py

SVG on a clear ground in colours that hold on light and dark pages; the same results give the same bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
OURS, OTHER, THIRD, FOURTH, FIFTH = "#2f7ebc", "#d3722a", "#8a8f98", "#b1952c", "#4f9d69"
INK = "#80858d"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opmix",
    "font.size": 8.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "axes.titlesize": 8.5,
}


def results(name: str, key: str = "rows") -> list[dict[str, Any]]:
    return list(json.loads((RESULTS / f"{name}.json").read_text())[key])


@contextmanager
def drawn(name: str, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes of a figure that is written when the context is left."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        yield axes
        FIGURES.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def million(size: int) -> str:
    return f"{size / 1e6:.2g} M"


def regret_at(cell: dict[str, Any], share: float) -> float:
    """Regret of another share of the new domain, read off the line between the trainings of a cell."""
    losses = {float(p): loss for p, loss in cell["losses"].items()}
    shares = sorted(losses)
    best = min(loss for p, loss in losses.items() if abs(10 * p - round(10 * p)) < 1e-9)
    return float(np.interp(share, shares, [losses[p] for p in shares])) / best - 1


def even(cell: dict[str, Any]) -> float:
    """Share of the new domain if all domains count alike."""
    return 1 / (len(cell["order"].split(">")[0].split("+")) + 1) if "domains" not in cell else 1 / cell["domains"]


def surfaces() -> None:
    """Shape of both surfaces, stage by stage."""
    rows = results("surfaces")
    columns = 5
    lines = -(-len(rows) // columns)
    with drawn("surfaces", lines, columns, (9.0, 1.65 * lines)) as axes:
        for place, row in zip(axes.flat, rows, strict=False):
            for kind, colour, mark in (("true", INK, "o"), ("simulated", OURS, "s")):
                values = np.array(row[kind])
                place.plot(
                    row["shares"],
                    values - values.mean(),
                    color=colour,
                    marker=mark,
                    markersize=2.5,
                    linewidth=1.2,
                    label=kind,
                )
                place.axvline(row[f"{kind}_optimum"], color=colour, linewidth=0.7, linestyle=":")
            place.set_title(f"{row['stage']}, seed {row['seed']}, {million(row['model_size'])}", fontsize=7.5)
        for place in list(axes.flat)[len(rows) :]:
            place.set_axis_off()
        axes[0, 0].legend(fontsize=7)
        axes[0, 0].set_ylabel("loss, mean taken off")
        axes[-1, 0].set_xlabel("share of the new domain")


def regret() -> None:
    """Regret by the number of known domains."""
    cells = [c for c in results("regret", "cells") if "domains" in c]
    for cell in cells:
        cell["even_regret"] = regret_at(cell, even(cell))
    with drawn("regret", 1, 2, (7.0, 2.6)) as axes:
        for place, keys, title in (
            (axes[0, 0], (("regret", OURS, "OP-Mix"), ("replay_regret", OTHER, "10 % replay")), "against 10 % replay"),
            (
                axes[0, 1],
                (("regret", OURS, "OP-Mix"), ("even_regret", FIFTH, "share 1/n")),
                "enlarged, and the share 1/n",
            ),
        ):
            for key, colour, label in keys:
                found = defaultdict(list)
                for cell in cells:
                    found[cell["domains"]].append(100 * cell[key])
                    place.plot(cell["domains"], 100 * cell[key], "o", color=colour, markersize=3.5, alpha=0.6)
                place.plot(sorted(found), [np.mean(found[n]) for n in sorted(found)], color=colour, label=label)
            place.set_title(title)
            place.set_xlabel("domains known after the stage")
            place.set_xticks(sorted({c["domains"] for c in cells}))
        axes[0, 1].axhline(1.18, color=THIRD, linewidth=0.8, linestyle="--")
        axes[0, 1].text(3, 1.12, "the paper's worst stage", va="top", fontsize=7.5)
        axes[0, 0].set_ylabel("regret, %")
        for place, where in zip(axes.flat, ("upper left", "center left"), strict=True):
            place.legend(fontsize=7.5, loc=where)


def forgetting() -> None:
    """Loss on the two domains of the base through the life."""
    rows = results("forgetting")
    lives = sorted({(r["order"], r["seed"]) for r in rows})
    colours = {"opmix": OURS, "replay": OTHER, "replay_even": FOURTH, "uniform": FIFTH, "sequential": THIRD}
    names = {
        "opmix": "OP-Mix",
        "replay": "10 % replay",
        "replay_even": "10 %, even",
        "uniform": "uniform",
        "sequential": "new data only",
    }
    with drawn("forgetting", 1, len(lives), (3.4 * len(lives), 2.6)) as axes:
        for place, (order, seed) in zip(axes.flat, lives, strict=True):
            for row in rows:
                if (row["order"], row["seed"]) == (order, seed):
                    known = list(row["rises"]["1"])
                    values = [np.mean([losses[d] for d in known]) for losses in row["losses"]]
                    place.plot(values, color=colours[row["way"]], marker="o", markersize=3, label=names[row["way"]])
            place.set_title(f"{order}, seed {seed}")
            place.set_xlabel("stages lived")
        axes[0, 0].set_ylabel("loss on the base's two domains")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7.5)


def main() -> None:
    for draw, needed in ((surfaces, "surfaces"), (regret, "regret"), (forgetting, "forgetting")):
        if (RESULTS / f"{needed}.json").exists():
            draw()


if __name__ == "__main__":
    main()
