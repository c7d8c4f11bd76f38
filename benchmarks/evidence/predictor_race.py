"""Who races: predictors with their settings, and what each foretells in a cell, kept beside the cell's raw numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from predictor_runs import Laboratory

from opmix.mixing.mixture import FloatArray, Mixture
from opmix.runs.files import write_json

TRAINED = ("domains", "targets")
"""Objectives whose optima are trained in full."""


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

    def proposal(self, numbers: Numbers, losses: Losses, weights: FloatArray) -> FloatArray:
        """Its own optimum of an objective, (D,)."""
        design = np.vstack([np.array(numbers.facts["R"]), numbers.uniform])
        spread = float(np.ptp(losses(design) @ weights))
        return optimum(losses, weights, numbers.uniform, self.kl + self.relative * spread)


def effective(kind: str, looks: bool) -> Callable[[Numbers], Losses]:
    """Effective tokens by least squares on the probes' ends, or on every look of theirs."""

    def foretell(numbers: Numbers) -> Losses:
        tokens, losses = numbers.looks(kind) if looks else numbers.probes(kind)
        return EffectiveTokens().fit(tokens, losses, len(numbers.domains))

    return foretell


def on_probes(kind: str) -> Callable[[Numbers], Losses]:
    return lambda numbers: log_linear_on_few(*numbers.probes(kind))


def swarm(numbers: Numbers) -> Losses:
    return log_linear(numbers, *numbers.swarm)


def swarm_effective(numbers: Numbers) -> Losses:
    return EffectiveTokens().fit(*numbers.swarm, len(numbers.domains))


def hierarchical_on(kind: str, looks: bool, relative: float = 0.1) -> Predictor:
    """The product's law; with looks and KL it is the primary, and its candidates are trained as probes."""
    name = "hierarchical effective tokens" + (", looks" if looks else "") + ("" if relative else ", no KL")
    foretell = partial(hierarchical, kind=kind, looks=looks)
    return Predictor(name, kind, foretell, relative=relative, candidates=looks and relative > 0)


PREDICTORS: tuple[Predictor, ...] = (
    Predictor("default of d824eca", "lora", default, kl=0.05),
    *(hierarchical_on(kind, looks) for looks in (True, False) for kind in ("lora", "full")),
    *(hierarchical_on(kind, looks=True, relative=0.0) for kind in ("lora", "full")),
    *(Predictor("ensemble", kind, partial(ensemble, kind=kind)) for kind in ("lora", "full")),
    *(Predictor("effective tokens", kind, effective(kind, looks=False)) for kind in ("lora", "full")),
    *(Predictor("effective tokens, looks", kind, effective(kind, looks=True)) for kind in ("lora", "full")),
    *(Predictor("log-linear on probes", kind, on_probes(kind), kl=0.05) for kind in ("lora", "full")),
    Predictor("gradient cosine", "none", cosine, relative=0.25),
    Predictor("swarm, log-linear", "swarm", swarm, kl=0.05),
    Predictor("swarm, effective tokens", "swarm", swarm_effective),
)


@dataclass(frozen=True)
class Foretold:
    """Losses (M, E) at mixtures (M, D), and the predictor's own optima."""

    mixtures: FloatArray
    losses: FloatArray
    optima: dict[str, FloatArray]

    def at(self, mixture: FloatArray) -> FloatArray | None:
        """Losses (E,) at one of the mixtures."""
        away = np.abs(self.mixtures - mixture).max(axis=1)
        return np.asarray(self.losses[away.argmin()]) if away.min() < 1e-6 else None


def foretold(predictor: Predictor, numbers: Numbers, mixtures: FloatArray) -> Foretold:
    """What a predictor says of uniform, its own optima and all `mixtures` (M, D); kept, and computed anew where one is missing."""
    file = numbers.folder / "foretold" / f"{re.sub('[^a-z0-9]+', '-', predictor.key)}.json"
    if file.exists():
        told = json.loads(file.read_text())
        known = Foretold(
            np.array(told["mixtures"]), np.array(told["losses"]), {k: np.array(p) for k, p in told["optima"].items()}
        )
        if all(known.at(p) is not None for p in mixtures):
            return known
    losses = predictor.foretell(numbers)
    optima = {o: predictor.proposal(numbers, losses, numbers.objectives[o]) for o in TRAINED}
    every = np.vstack([mixtures, numbers.uniform, *optima.values()])
    content: dict[str, Any] = {"mixtures": every.tolist(), "losses": losses(every).tolist()}
    file.parent.mkdir(exist_ok=True)
    write_json(file, {**content, "optima": {k: p.tolist() for k, p in optima.items()}})
    return Foretold(every, np.array(content["losses"]), optima)


def chosen(predictor: Predictor, numbers: Numbers, objective: str) -> tuple[str, FloatArray]:
    """Of the candidates and uniform, the one whose own probe measured the lowest objective: name and mixture."""
    weights = numbers.objectives[objective]
    found = {"uniform": (numbers.uniform, float(numbers.probes(predictor.probes)[1][0] @ weights))}
    for name, (mixture, losses) in numbers.candidates(predictor.probes, objective).items():
        found[name] = (mixture, float(losses @ weights))
    best = min(found, key=lambda name: found[name][1])
    return best, found[best][0]


def train_candidates(predictor: Predictor, laboratory: Laboratory, numbers: Numbers, objective: str) -> None:
    """Train the candidates of an objective as probes, and the chosen one in full."""
    weights, count = numbers.objectives[objective], len(numbers.domains)
    losses = predictor.foretell(numbers)
    own = predictor.proposal(numbers, losses, weights)
    singles = np.array([leaning(count, d, 0.6) for d in range(count)])
    single = singles[int((losses(singles) @ weights).argmin())]
    wanted = {"optimum": own, "half-way": (own + numbers.uniform) / 2, "single": single}
    mixtures = {f"{objective}-{name}": Mixture(numbers.domains, p / p.sum()) for name, p in wanted.items()}
    laboratory.candidates(predictor.probes, mixtures)
    name, mixture = chosen(predictor, numbers, objective)
    laboratory.full_training(Mixture(numbers.domains, mixture / mixture.sum()), f"{predictor.key}, {objective}, {name}")
