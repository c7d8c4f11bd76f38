"""How well each predictor foretold full training: correlation, regret of its own optimum, coverage of its interval, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from predictor_laws import Numbers
from predictor_race import PREDICTORS, TRAINED, Foretold, Predictor, chosen, foretold
from predictor_runs import SAME
from scipy.stats import spearmanr

from opmix.mixing.mixture import FloatArray


@dataclass(frozen=True)
class Truth:
    """What full training gave in a cell."""

    numbers: Numbers

    @cached_property
    def trainings(self) -> list[dict[str, Any]]:
        return self.numbers.trainings()

    @cached_property
    def repeats(self) -> FloatArray:
        """Losses of all uniform trainings, (orders, E)."""
        return np.array([self.numbers.mean(t["test"]) for t in self.trainings if t["name"] == "uniform"])

    @cached_property
    def mixtures(self) -> FloatArray:
        """Of everything but uniform, (M, D)."""
        return np.array([t["mixture"] for t in self._others])

    @cached_property
    def losses(self) -> FloatArray:
        """(M, E)."""
        return np.array([self.numbers.mean(t["test"]) for t in self._others])

    @cached_property
    def arms(self) -> FloatArray:
        """Which of them no predictor chose, (M,) bool."""
        return np.array([t["name"].split()[0] in ("size", "random", "corner") for t in self._others])

    @cached_property
    def protocol(self) -> FloatArray:
        """Which of them the protocol names, (M,) bool: in confirming cells not those without KL, which were added afterwards."""
        added = [any(mark in t["name"] for mark in ("no KL", "kl 0")) for t in self._others]
        return ~np.array(added) if self.numbers.facts["use"] == "confirming" else np.ones(len(added), bool)

    @property
    def _others(self) -> list[dict[str, Any]]:
        return [t for t in self.trainings if t["name"] != "uniform"]

    def loss_at(self, mixture: FloatArray) -> FloatArray | None:
        """Losses (E,) of the training on a mixture, or on one that is nearly it; None: not trained."""
        if 0.5 * np.abs(mixture - self.numbers.uniform).sum() < SAME:
            return np.asarray(self.repeats.mean(axis=0))
        away = 0.5 * np.abs(self.mixtures - mixture).sum(axis=1)
        return np.asarray(self.losses[away.argmin()]) if away.min() < SAME else None

    def judged(self, weights: FloatArray, mixture: FloatArray) -> dict[str, float]:
        """Gain and regrets of a mixture by its full training; nothing where it was not trained."""
        trained = self.loss_at(mixture)
        if trained is None:
            return {}
        loss, at_uniform = float(trained @ weights), float(self.repeats.mean(axis=0) @ weights)
        best = min(at_uniform, float((self.losses @ weights).min()))
        return {"gain": at_uniform - loss, "regret": loss / best - 1, "against_uniform": loss / at_uniform - 1}


def row(predictor: Predictor, truth: Truth, objective: str, told: Foretold) -> dict[str, Any]:
    """One predictor, one cell, one objective. Gains in nats per token over uniform, regrets relative."""
    numbers, weights = truth.numbers, truth.numbers.objectives[objective]

    def gain(p: FloatArray) -> float:
        return float((told.at(numbers.uniform) - told.at(p)) @ weights)

    measured = float(truth.repeats.mean(axis=0) @ weights) - truth.losses @ weights
    foretold_gains, arms = np.array([gain(p) for p in truth.mixtures]), truth.arms[truth.protocol]
    foretold_gains, measured = foretold_gains[truth.protocol], measured[truth.protocol]
    made = {
        "cell": numbers.folder.name,
        "set": numbers.facts["use"],
        "seed": numbers.facts["seed"],
        "parameters": numbers.facts["parameters"],
        "predictor": predictor.name,
        "probes": predictor.probes,
        "objective": objective,
        "r": correlation(foretold_gains, measured),
        "spearman": float(spearmanr(foretold_gains, measured).statistic),
        "r_arms": correlation(foretold_gains[arms], measured[arms]),
        "slope": float(foretold_gains @ measured / max(foretold_gains @ foretold_gains, 1e-12)),
        "noise": float((truth.repeats @ weights).std(ddof=1)),
        "search_share": search_share(predictor, numbers),
        "foretold": foretold_gains.round(4).tolist(),
        "measured": measured.round(4).tolist(),
    }
    if objective in TRAINED:
        own = told.optima[objective]
        made |= {"optimum": dict(zip(numbers.domains, own.round(4).tolist(), strict=True)), "foretold_gain": gain(own)}
        made |= truth.judged(weights, own)
        if predictor.candidates and numbers.candidates(predictor.probes, objective):
            name, mixture = chosen(predictor, numbers, objective)
            made["candidates"] = {"chosen": name, **truth.judged(weights, mixture)}
    return made


def correlation(a: FloatArray, b: FloatArray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def search_share(predictor: Predictor, numbers: Numbers) -> float:
    """FLOPs of the search by those of the stage: a training token is three forward passes, an adapter's two and a half."""
    lengths, step, sets = numbers.facts["lengths"], numbers.facts["step_tokens"], len(numbers.sets)
    length = numbers.facts["tokens_per_sequence"] + 1
    look, count = lengths["held_out"] * length * sets, len(numbers.domains) + 1
    factor = {"lora": 2.5, "full": 3.0, "swarm": 3.0, "none": 0.0}[predictor.probes]
    training = factor * count * lengths["probe"] * step
    special = {
        "default of d824eca": len(numbers.averaged[0]) * look,
        "gradient cosine": 3 * (sets + count - 1) * 32 * length,
    }
    usual = 14 * look if predictor.probes == "swarm" else count * look
    evaluation = special.get(predictor.name, usual) + (1.5 * count * look if "looks" in predictor.name else 0)
    return float((training + evaluation + look) / (3 * lengths["stage"] * step))


@dataclass(frozen=True)
class Discrepancy:
    """What a foretold gain comes to in a stage: `measured = factor * foretold`, with a spread of the factor and an error beside it."""

    factor: float
    spread: float
    """Relative standard deviation of the factor."""
    error: float
    """Nats, of a difference whatever its size."""

    @classmethod
    def learned(cls, rows: Sequence[Mapping[str, Any]]) -> Discrepancy:
        """By moments from all mixtures of some rows, each weighed by the variance that the law itself gives it."""
        told = np.concatenate([r["foretold"] for r in rows])
        measured = np.concatenate([r["measured"] for r in rows])
        factor, spread, error = float(told @ measured / max(told @ told, 1e-12)), 0.5, 0.02
        for _ in range(200):
            variance = (factor * spread * told) ** 2 + error**2
            factor = float(max((told * measured / variance).sum() / (told**2 / variance).sum(), 1e-3))
            squared, design = (measured - factor * told) ** 2, np.stack([told**2, np.ones(len(told))], 1)
            scaled = np.linalg.lstsq(design / variance[:, None], squared / variance, rcond=None)[0]
            spread, error = float(np.sqrt(max(scaled[0], 0))) / factor, float(np.sqrt(max(scaled[1], 1e-6)))
        return cls(factor, spread, error)

    def interval(self, told: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Central 90 %."""
        half = 1.645 * np.sqrt((self.factor * self.spread * told) ** 2 + self.error**2)
        return self.factor * told - half, self.factor * told + half


def rows_of(numbers: Numbers) -> list[dict[str, Any]]:
    """All predictors on a cell."""
    truth, made = Truth(numbers), []
    for predictor in PREDICTORS:
        told = foretold(predictor, numbers, truth.mixtures)
        made += [row(predictor, truth, objective, told) for objective in numbers.objectives]
    return made


def raced(cells: Sequence[Numbers]) -> dict[str, Any]:
    """Rows of all cells with intervals learned on the choosing ones, and a summary of the confirming ones."""
    rows = [r for numbers in cells for r in rows_of(numbers)]
    learned = {}
    for key in dict.fromkeys((r["predictor"], r["probes"]) for r in rows):
        mine = [r for r in rows if (r["predictor"], r["probes"]) == key]
        known = [r for r in mine if r["set"] == "choosing"]
        if known:
            law = learned[" / ".join(key)] = Discrepancy.learned(known)
            for r in mine:
                cover(r, law)
    return {"discrepancy": {k: vars(v) for k, v in learned.items()}, "summary": summary(rows), "rows": rows}


def cover(found: dict[str, Any], law: Discrepancy) -> None:
    """Whether the interval holds what was measured: at all mixtures (a share), and at the optimum."""
    low, high = law.interval(np.array(found["foretold"]))
    found["covered_mixtures"] = float(np.mean((low <= found["measured"]) & (found["measured"] <= high)))
    if "gain" in found:
        low, high = law.interval(np.array(found["foretold_gain"]))
        found["interval"] = [float(low), float(high)]
        found["covered"] = bool(low <= found["gain"] <= high)


MEASURES = (
    "r",
    "spearman",
    "r_arms",
    "gain",
    "regret",
    "against_uniform",
    "covered",
    "covered_mixtures",
    "search_share",
)
WORST: Mapping[str, Callable[[FloatArray], Any]] = {
    k: np.max if k in ("regret", "against_uniform", "search_share") else np.min for k in MEASURES
}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and worst of every measure by size, objective and predictor, over the confirming cells."""
    decided = [
        {**{k: r[k] for k in ("set", "parameters", "objective", "probes")}, **r["candidates"]}
        | {"predictor": f"{r['predictor']}, candidates"}
        for r in rows
        if "candidates" in r
    ]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for r in [*rows, *decided]:
        if r["set"] == "confirming":
            size = "3M" if r["parameters"] > 1e6 else "0.3M"
            groups.setdefault((size, r["objective"], r["predictor"], r["probes"]), []).append(r)
    made = []
    for (size, objective, predictor, probes), mine in sorted(groups.items()):
        told = {k: np.array([float(r[k]) for r in mine if k in r]) for k in MEASURES}
        numbers = {k: [round(float(v.mean()), 5), round(float(WORST[k](v)), 5)] for k, v in told.items() if len(v)}
        names = {"size": size, "objective": objective, "predictor": predictor, "probes": probes}
        made.append({**names, "cells": len(mine), "trained": len(told["gain"]), **numbers})
    return made
