"""How well each predictor foretold full training: correlation, regret of its own optimum, coverage of its interval, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from predictor_cells import leaning
from predictor_laws import (
    EffectiveTokens,
    Losses,
    Numbers,
    cosine,
    default,
    ensemble,
    hierarchical,
    log_linear,
    log_linear_on_few,
    optimum,
)
from predictor_runs import SAME, Laboratory
from scipy.stats import spearmanr

from opmix.mixing.mixture import FloatArray, Mixture


@dataclass(frozen=True)
class Predictor:
    """A predictor with its settings; `relative` takes the KL weight as a share of the foretold losses' spread over the design."""

    name: str
    probes: str
    foretell: Callable[[Numbers], Losses]
    kl: float = 0.0
    relative: float = 0.0
    candidates: bool = False
    """Whether its optimum, the way to it and the best single domain are also trained as probes."""

    @property
    def key(self) -> str:
        return f"{self.name} / {self.probes}"


def effective(kind: str, looks: bool, law: EffectiveTokens | None = None) -> Callable[[Numbers], Losses]:
    """Effective tokens on the probes' ends, or on every look of theirs."""

    def foretell(numbers: Numbers) -> Losses:
        tokens, losses = numbers.looks(kind) if looks else numbers.probes(kind)
        return (law or EffectiveTokens()).fit(tokens, losses, len(numbers.domains))

    return foretell


def on_probes(kind: str) -> Callable[[Numbers], Losses]:
    return lambda numbers: log_linear_on_few(*numbers.probes(kind))


def swarm(numbers: Numbers) -> Losses:
    return log_linear(numbers, *numbers.swarm)


def swarm_effective(numbers: Numbers) -> Losses:
    return EffectiveTokens().fit(*numbers.swarm, len(numbers.domains))


def hierarchical_on(kind: str, looks: bool) -> Predictor:
    """The product's law; with looks it is the primary, and its candidates are trained as probes."""
    name = "hierarchical effective tokens" + (", looks" if looks else "")
    return Predictor(name, kind, partial(hierarchical, kind=kind, looks=looks), relative=0.1, candidates=looks)


PREDICTORS: tuple[Predictor, ...] = (
    Predictor("default of d824eca", "lora", default, kl=0.05),
    *(Predictor("log-linear on probes", kind, on_probes(kind), kl=0.05) for kind in ("lora", "full")),
    *(Predictor("effective tokens", kind, effective(kind, looks=False)) for kind in ("lora", "full")),
    *(Predictor("effective tokens, looks", kind, effective(kind, looks=True)) for kind in ("lora", "full")),
    *(hierarchical_on(kind, looks) for looks in (False, True) for kind in ("lora", "full")),
    *(Predictor("ensemble", kind, partial(ensemble, kind=kind)) for kind in ("lora", "full")),
    Predictor("gradient cosine", "none", cosine, relative=0.25),
    Predictor("swarm, log-linear", "swarm", swarm, kl=0.05),
    Predictor("swarm, effective tokens", "swarm", swarm_effective),
)


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

    @property
    def _others(self) -> list[dict[str, Any]]:
        return [t for t in self.trainings if t["name"] != "uniform"]

    def loss_at(self, mixture: FloatArray) -> FloatArray | None:
        """Losses (E,) of the training on a mixture, or on one that is nearly it; None: not trained."""
        if 0.5 * np.abs(mixture - self.numbers.uniform).sum() < SAME:
            return np.asarray(self.repeats.mean(axis=0))
        away = 0.5 * np.abs(self.mixtures - mixture).sum(axis=1)
        return np.asarray(self.losses[away.argmin()]) if away.min() < SAME else None


def proposal(predictor: Predictor, numbers: Numbers, losses: Losses, weights: FloatArray) -> FloatArray:
    """The predictor's own optimum of an objective."""
    design = np.vstack([np.array(numbers.facts["R"]), numbers.uniform])
    spread = float(np.ptp(losses(design) @ weights))
    return optimum(losses, weights, numbers.uniform, predictor.kl + predictor.relative * spread)


def row(predictor: Predictor, truth: Truth, objective: str, losses: Losses) -> dict[str, Any]:
    """One predictor, one cell, one objective. Gains in nats per token over uniform, regrets relative."""
    numbers, weights = truth.numbers, truth.numbers.objectives[objective]
    at_uniform = float(truth.repeats.mean(axis=0) @ weights)
    measured = at_uniform - truth.losses @ weights
    start = float((losses(numbers.uniform) @ weights)[0])
    foretold = start - losses(truth.mixtures) @ weights
    own = proposal(predictor, numbers, losses, weights)
    made = {
        "cell": numbers.folder.name,
        "set": numbers.facts["use"],
        "seed": numbers.facts["seed"],
        "parameters": numbers.facts["parameters"],
        "predictor": predictor.name,
        "probes": predictor.probes,
        "objective": objective,
        "r": correlation(foretold, measured),
        "spearman": float(spearmanr(foretold, measured).statistic),
        "r_arms": correlation(foretold[truth.arms], measured[truth.arms]),
        "optimum": dict(zip(numbers.domains, own.round(4).tolist(), strict=True)),
        "foretold_gain": start - float((losses(own) @ weights)[0]),
        "slope": float(foretold @ measured / max(foretold @ foretold, 1e-12)),
        "foretold": foretold.round(5).tolist(),
        "measured": measured.round(5).tolist(),
        "noise": float((truth.repeats @ weights).std(ddof=1)),
        "search_share": search_share(predictor, numbers),
    }
    made |= judged(truth, weights, own)
    if predictor.candidates and numbers.candidates(predictor.probes, objective):
        name, mixture = chosen(predictor, numbers, objective)
        made["candidates"] = {"chosen": name, **judged(truth, weights, mixture)}
    return made


def judged(truth: Truth, weights: FloatArray, mixture: FloatArray) -> dict[str, float]:
    """Gain and regrets of a mixture by its full training; nothing where it was not trained."""
    trained = truth.loss_at(mixture)
    if trained is None:
        return {}
    loss, at_uniform = float(trained @ weights), float(truth.repeats.mean(axis=0) @ weights)
    best = min(at_uniform, float((truth.losses @ weights).min()))
    return {"gain": at_uniform - loss, "regret": loss / best - 1, "against_uniform": loss / at_uniform - 1}


def chosen(predictor: Predictor, numbers: Numbers, objective: str) -> tuple[str, FloatArray]:
    """Of the candidates and uniform, the one whose own probe measured the lowest objective: name and mixture."""
    weights = numbers.objectives[objective]
    joint = float(numbers.probes(predictor.probes)[1][0] @ weights)
    found = {"uniform": (numbers.uniform, joint)}
    for name, (mixture, losses) in numbers.candidates(predictor.probes, objective).items():
        found[name] = (mixture, float(losses @ weights))
    best = min(found, key=lambda name: found[name][1])
    return best, found[best][0]


def candidates_of(
    predictor: Predictor, laboratory: Laboratory, numbers: Numbers, objective: str, losses: Losses
) -> None:
    """Train the candidates of an objective as probes, and the chosen one in full."""
    weights, count = numbers.objectives[objective], len(numbers.domains)
    own = proposal(predictor, numbers, losses, weights)
    singles = np.array([leaning(count, d, 0.6) for d in range(count)])
    single = singles[int((losses(singles) @ weights).argmin())]
    wanted = {"optimum": own, "half-way": (own + numbers.uniform) / 2, "single": single}
    mixtures = {f"{objective}-{name}": Mixture(numbers.domains, p / p.sum()) for name, p in wanted.items()}
    laboratory.candidates(predictor.probes, mixtures)
    name, mixture = chosen(predictor, numbers, objective)
    laboratory.full_training(Mixture(numbers.domains, mixture / mixture.sum()), f"{predictor.key}, {objective}, {name}")


def correlation(a: FloatArray, b: FloatArray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def search_share(predictor: Predictor, numbers: Numbers) -> float:
    """FLOPs of the search by those of the stage: a training token is three forward passes, an adapter's two and a half."""
    lengths, step, sets = numbers.facts["lengths"], numbers.facts["step_tokens"], len(numbers.sets)
    length = numbers.facts["tokens_per_sequence"] + 1
    look, count = lengths["held_out"] * length * sets, len(numbers.domains) + 1
    ends, early = count * look, count * look * 1.5
    factor = {"lora": 2.5, "full": 3.0, "swarm": 3.0, "none": 0.0}[predictor.probes]
    training = factor * count * lengths["probe"] * step
    points = {
        "default of d824eca": len(numbers.averaged[0]) * look,
        "gradient cosine": 3 * (sets + count - 1) * 32 * length,
    }
    evaluation = points.get(predictor.name, 14 * look if predictor.probes == "swarm" else ends)
    evaluation += early if "looks" in predictor.name else 0
    return float((training + evaluation + look) / (3 * lengths["stage"] * step))


def rows_of(numbers: Numbers, predictors: Sequence[Predictor] = PREDICTORS) -> list[dict[str, Any]]:
    """All predictors on a cell."""
    truth, made = Truth(numbers), []
    for predictor in predictors:
        losses = predictor.foretell(numbers)
        made += [row(predictor, truth, objective, losses) for objective in numbers.objectives]
    return made


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
        """From all mixtures of some rows: a moment estimate, large gains weighing no more than small ones do in their own scale."""
        foretold = np.concatenate([r["foretold"] for r in rows])
        measured = np.concatenate([r["measured"] for r in rows])
        factor, spread, error = float(foretold @ measured / max(foretold @ foretold, 1e-12)), 0.5, 0.02
        for _ in range(200):
            variance = (factor * spread * foretold) ** 2 + error**2
            factor = float(max((foretold * measured / variance).sum() / (foretold**2 / variance).sum(), 1e-3))
            squared, design = (measured - factor * foretold) ** 2, np.stack([foretold**2, np.ones(len(foretold))], 1)
            scaled = np.linalg.lstsq(design / variance[:, None], squared / variance, rcond=None)[0]
            spread, error = float(np.sqrt(max(scaled[0], 0))) / factor, float(np.sqrt(max(scaled[1], 1e-6)))
        return cls(factor, spread, error)

    def interval(self, foretold: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Central 90 %."""
        half = 1.645 * np.sqrt((self.factor * self.spread * foretold) ** 2 + self.error**2)
        return self.factor * foretold - half, self.factor * foretold + half


TRAINED = ("domains", "targets")
"""Objectives whose optima are trained in full."""


def raced(cells: Sequence[Numbers]) -> dict[str, Any]:
    """Rows of all cells with intervals learned on the choosing ones, and a summary of the confirming ones."""
    rows = [r for numbers in cells for r in rows_of(numbers)]
    learned = {}
    for key in dict.fromkeys((r["predictor"], r["probes"]) for r in rows):
        mine = [r for r in rows if (r["predictor"], r["probes"]) == key]
        known = [r for r in mine if r["set"] == "choosing"]
        if not known:
            continue
        law = learned[" / ".join(key)] = Discrepancy.learned(known)
        for r in mine:
            low, high = law.interval(np.array(r["foretold"]))
            r["covered_mixtures"] = float(np.mean((low <= r["measured"]) & (r["measured"] <= high)))
            low, high = law.interval(np.array([r["foretold_gain"]]))
            r["interval"] = [float(low[0]), float(high[0])]
            if "gain" in r:
                r["covered"] = bool(low[0] <= r["gain"] <= high[0])
    return {"rows": rows, "discrepancy": {k: vars(v) for k, v in learned.items()}, "summary": summary(rows)}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a predictor and objective, over the small confirming cells."""
    lines, seen = [], dict.fromkeys((r["objective"], r["predictor"], r["probes"]) for r in rows)
    for objective, predictor, probes in sorted(seen):
        mine = [
            r
            for r in rows
            if (r["objective"], r["predictor"], r["probes"]) == (objective, predictor, probes)
            and r["set"] == "confirming"
            and r["parameters"] < 1e6
        ]
        if mine:
            told = {k: np.array([r[k] for r in mine if k in r]) for k in MEASURES}
            numbers = ", ".join(f"{k} {v.mean():.4g} (worst {WORST[k](v):.4g})" for k, v in told.items() if len(v))
            lines.append(f"{objective}: {predictor} / {probes}, {len(mine)} cells: {numbers}")
    return lines


MEASURES = (
    "r",
    "spearman",
    "r_arms",
    "gain",
    "regret",
    "against_uniform",
    "covered",
    "covered_mixtures",
    "slope",
    "search_share",
)
WORST: Mapping[str, Callable[[FloatArray], Any]] = {
    k: np.max if k in ("regret", "against_uniform", "search_share") else np.min for k in MEASURES
}
