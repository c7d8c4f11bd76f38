"""A compare.json as `opmix compare` writes it: twenty entrants, two seeds, twelve domains, one of them with a name that is markup."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from opmix.results.life import Spread
from opmix.runs.files import plain

DOMAINS = [f"domain_{i}" for i in range(11)] + ["<script>alert(1)</script>"]
NAMES = ["op_mix", "uniform", *(f"method_number_{i}" for i in range(18))]


def spread(values: list[float]) -> dict:
    return asdict(Spread.of(values))


def life(rng: np.random.Generator, level: float, search: float) -> dict:
    losses = {d: float(level + rng.normal(0, 0.1)) for d in DOMAINS}
    known = DOMAINS[:8]
    shares = dict(zip(DOMAINS, rng.dirichlet(np.ones(len(DOMAINS))).tolist(), strict=True))
    return {
        "stages": [
            {
                "name": "more",
                "folder": "seed-0/x/02-more",
                "tokens": 1_000_000,
                "mixture": shares,
                "losses": {},
                "forgetting": {},
                "scores": {},
                "cost": {"tokens": {}, "flops": {}, "search_share": None},
            }
        ],
        "losses": losses,
        "errors": dict.fromkeys(losses, 0.01),
        "mean_loss": float(np.mean(list(losses.values()))),
        "mean_loss_by_stage": [level],
        "forgetting": {d: float(rng.normal(0.1, 0.1)) for d in known},
        "scores": {},
        "cost": {
            "tokens": {"shared": 1e6, "search": 1e5, "training": 1e6},
            "flops": {"shared": 1e12, "search": search, "training": 1e12},
        },
    }


def row(name: str, lives: dict, others: dict) -> dict:
    one = list(lives.values())
    made = {
        "entrant": name,
        "seeds": len(one),
        "mean_loss": spread([x["mean_loss"] for x in one]),
        "perplexity": spread([float(np.exp(x["mean_loss"])) for x in one]),
        "forgetting": spread([float(np.mean(list(x["forgetting"].values()))) for x in one]),
        "worst_forgetting": spread([max(x["forgetting"].values()) for x in one]),
        "search_flops": spread([x["cost"]["flops"]["search"] for x in one]),
        "training_flops": spread([1e12] * len(one)),
        "total_flops": spread([sum(x["cost"]["flops"].values()) for x in one]),
        "tokens": spread([1e6] * len(one)),
    }
    if name != "op_mix":
        made["difference"] = spread([lives[s]["mean_loss"] - others[s]["mean_loss"] for s in lives])
    return made


def write_comparison(folder: Path, seeds: int = 2) -> Path:
    """compare.json, spent.json and manifest.json."""
    rng = np.random.default_rng(0)
    lives = {
        n: {str(s): life(rng, 3 + 0.02 * i, 0.0 if n == "uniform" else 1e11 * (1 + i)) for s in range(seeds)}
        for i, n in enumerate(NAMES)
    }
    entrants = {
        n: {
            "method": n,
            "title": n,
            "family": "searched",
            "line": "does it",
            "paper": "",
            "settings": {},
            "stage": {},
            "seeds": x,
        }
        for n, x in lives.items()
    }
    rows = [row(n, x, lives["op_mix"]) for n, x in lives.items()]
    content = {
        "schema": 1,
        "kind": "compare",
        "units": "nats per token",
        "split": "test",
        "reference": "op_mix",
        "contested": ["more"],
        "shared": ["base"],
        "entrants": entrants,
        "table": sorted(rows, key=lambda r: r["mean_loss"]["mean"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    spent = {
        n: {s: {"seconds": {"search": 5.0, "training": 60.0}, "bytes_written": 12_000_000} for s in x}
        for n, x in lives.items()
    }
    for name, value in (("compare", content), ("spent", spent), ("manifest", {"command": "compare"})):
        (folder / f"{name}.json").write_text(json.dumps(plain(value)))
    return folder
