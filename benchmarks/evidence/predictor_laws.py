"""Predictors of the race, each computed from a cell's raw numbers alone.

A predictor foretells, for every evaluation set, the loss after the stage on any mixture; what is compared are differences to uniform.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize

from opmix.mixing.effective_tokens_fit import fit_effective_tokens
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray

Losses = Callable[[FloatArray], FloatArray]
"""Mixtures (M, D) to losses (M, E), nats per token, up to a constant a set."""


@dataclass(frozen=True)
class Numbers:
    """A cell's raw numbers as arrays; E sets, D domains."""

    folder: Path

    def _read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    @cached_property
    def facts(self) -> dict[str, Any]:
        return self._read("start")

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.facts["domains"])

    @property
    def sets(self) -> tuple[str, ...]:
        return (*self.facts["domains"], *self.facts["targets"])

    @cached_property
    def objectives(self) -> dict[str, FloatArray]:
        """Weights over the sets: all domains, all targets, the first target alone."""
        count, targets = len(self.domains), len(self.facts["targets"])
        eye = np.eye(count + targets)
        return {"domains": eye[:count].mean(axis=0), "targets": eye[count:].mean(axis=0), "one target": eye[count]}

    def mean(self, nll: Mapping[str, list[float]], num: int | None = None) -> FloatArray:
        """Nats per token on each set, (E,), of the first `num` sequences."""
        return np.array([np.mean(nll[s][:num]) for s in self.sets]) / self.facts["tokens_per_sequence"]

    @cached_property
    def base(self) -> FloatArray:
        return self.mean(self.facts["valid"])

    @cached_property
    def uniform(self) -> FloatArray:
        return np.full(len(self.domains), 1 / len(self.domains))

    def probes(self, kind: str) -> tuple[FloatArray, FloatArray]:
        """Mixtures (P, D) and losses (P, E) at the probes' ends."""
        found = self._read(f"probes-{kind}")["probes"].values()
        return np.array([p["mixture"] for p in found]), np.array([self.mean(p["looks"][-1]["nll"]) for p in found])

    def looks(self, kind: str) -> tuple[FloatArray, FloatArray]:
        """Tokens by domain as shares of a stage's (K, D) and losses (K, E), at every look of every probe, and of the base.

        Early looks see half of the sequences: their difference to the base on that half is taken.
        """
        tokens, losses, stage = [np.zeros(len(self.domains))], [self.base], self.facts["lengths"]["stage"]
        for probe in self._read(f"probes-{kind}")["probes"].values():
            for look in probe["looks"]:
                num = len(look["nll"][self.sets[0]])
                tokens.append(np.array(probe["mixture"]) * look["step"] / stage)
                losses.append(self.base + self.mean(look["nll"]) - self.mean(self.facts["valid"], num))
        return np.array(tokens), np.array(losses)

    @cached_property
    def averaged(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The default's points: weights (M, P), mixtures (M, D), losses (M, E)."""
        found = self._read("probes-lora")
        weights = np.array(found["points"])
        return weights, weights @ np.array(self.facts["R"]), np.array([self.mean(n) for n in found["nll"]])

    def candidates(self, kind: str, objective: str) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Mixture and losses (E,) of every candidate of an objective that was trained as a probe."""
        found = {}
        for file in sorted((self.folder / f"candidates-{kind}").glob(f"{objective}-*.json")):
            told = json.loads(file.read_text())
            name = file.stem.removeprefix(f"{objective}-")
            found[name] = (np.array(told["mixture"]), self.mean(told["looks"][-1]["nll"]))
        return found

    @cached_property
    def swarm(self) -> tuple[FloatArray, FloatArray]:
        runs = self._read("swarm")["runs"]
        return np.array([r["mixture"] for r in runs]), np.array([self.mean(r["nll"]) for r in runs])

    @cached_property
    def gradients(self) -> FloatArray:
        """Cosines at the base of each set's gradient with each domain's, (E, D)."""
        found = self._read("gradients")
        return np.array(found["products"]) / np.sqrt(np.outer(found["sets"], found["domains"]))

    def token_log_probs(self, kind: str) -> list[FloatArray]:
        """By set, of the specialised probes, (D, N)."""
        with np.load(self.folder / f"tokens-{kind}.npz") as arrays:
            return [
                -np.stack([arrays[f"{k + 1}/{s}"].ravel().astype(np.float64) for k in range(len(self.domains))])
                for s in self.sets
            ]

    def json(self) -> dict[str, Any]:
        """All losses, nats per token in the order of the sets: enough to judge another law without a model."""

        def few(losses: FloatArray) -> list[Any]:
            return np.asarray(losses).round(4).tolist()

        facts = {k: self.facts[k] for k in ("use", "seed", "parameters", "domains", "targets", "lengths", "available")}
        looks = {kind: self.looks(kind) for kind in ("lora", "full")}
        _, averaged, losses = self.averaged
        return {
            **facts,
            "base": few(self.base),
            "probes": {kind: {"tokens": few(t), "losses": few(y)} for kind, (t, y) in looks.items()},
            "averaged": {"mixtures": few(averaged), "losses": few(losses)},
            "swarm": {"mixtures": few(self.swarm[0]), "losses": few(self.swarm[1])},
            "cosines": few(self.gradients),
            "trainings": [
                {
                    "name": t["name"],
                    "order": t["order"],
                    "mixture": few(t["mixture"]),
                    "losses": few(self.mean(t["test"])),
                }
                for t in self.trainings()
            ],
        }

    def trainings(self) -> list[dict[str, Any]]:
        return [json.loads(f.read_text()) for f in sorted((self.folder / "trainings").glob("*.json"))]


# -- predictors ------------------------------------------------------------------------------------------------------


def log_linear(numbers: Numbers, mixtures: FloatArray, losses: FloatArray) -> Losses:
    """`c + exp(t . p)` by the product's fit."""
    law = fit_law(mixtures, losses, domains=numbers.domains, metrics=numbers.sets).law
    return lambda p: law.predict(np.atleast_2d(p))


def log_linear_on_few(mixtures: FloatArray, losses: FloatArray) -> Losses:
    """`c + exp(t . p)` where there are no more points than exponents: `c` one spread below the lowest loss, `t` of least norm."""
    c = losses.min(axis=0) - np.ptp(losses, axis=0)
    t = np.linalg.lstsq(mixtures, np.log(losses - c), rcond=None)[0]
    return lambda p: c + np.exp(np.atleast_2d(p) @ t)


def default(numbers: Numbers) -> Losses:
    """That of d824eca: the law through averaged adapters, without the specialised probes' own points.

    Its term for interference, which predictions leave out, is not fitted.
    """
    weights, mixtures, losses = numbers.averaged
    count = weights.shape[1]
    kept = [i for i in range(len(weights)) if i == 0 or i > count]
    return log_linear(numbers, mixtures[kept], losses[kept])


def cosine(numbers: Numbers) -> Losses:
    """First order in the shares: minus the mean cosine of gradients at the base."""
    return lambda p: -np.atleast_2d(p) @ numbers.gradients.T


def ensemble(numbers: Numbers, kind: str) -> Losses:
    """MDE / MixMin (arXiv 2502.15950, 2502.10510): `-mean log sum_k w_k P_k` of the specialised probes."""
    tables = [np.exp(t) for t in numbers.token_log_probs(kind)]
    R = np.array(numbers.facts["R"])[1:]

    def losses(p: FloatArray) -> FloatArray:
        weights = np.maximum(np.linalg.solve(R.T, np.atleast_2d(p).T).T, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.stack([-np.log(weights @ t).mean(axis=1) for t in tables], axis=1)

    return losses


@dataclass(frozen=True)
class EffectiveTokens:
    """`a - b log(n + sum_d s_d (T p_d)^rho)`, fitted by least squares with weak priors; a reference to choose with, not the product's.

    worth: what other domains are worth to a domain's own set: "free" (as to a target), "shrunk" (near nothing) or "none".
    """

    rho: float = 0.6
    worth: str = "free"
    scale: float = 0.01
    prior: float = 0.3

    def fit(self, tokens: FloatArray, losses: FloatArray, num_domains: int) -> Losses:
        found = [self._one(tokens, y, e if e < num_domains else None) for e, y in enumerate(losses.T)]
        a, b, n = (np.array([f[i] for f in found]) for i in range(3))
        s = np.array([f[3] for f in found])
        return lambda p: a - b * np.log(n + np.atleast_2d(p) ** self.rho @ s.T)

    def _one(self, tokens: FloatArray, y: FloatArray, own: int | None) -> tuple[float, float, float, FloatArray]:
        count = tokens.shape[1]
        x = tokens**self.rho
        free = own is None or self.worth == "free"
        centre, pull = np.full(count, -1.5), np.full(count, self.prior)
        fixed = np.full(count, np.nan)
        if own is not None and not free:
            centre[:], pull[:] = -4.0, 0.5
            if self.worth == "none":
                fixed[:] = -40.0
            fixed[own] = 0.0
        elif own is not None:
            centre[own] = 0.0
        open_ = np.isnan(fixed)

        def parts(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
            log_s = fixed.copy()
            log_s[open_] = theta[3:]
            return np.exp(log_s), np.exp(theta[2]) + x @ np.exp(log_s)

        def residuals(theta: FloatArray) -> FloatArray:
            _, inside = parts(theta)
            pulls = [self.prior * (theta[1] + 2.5), self.prior * (theta[2] + 2.5)]
            worth = pull[open_] * (theta[3:] - centre[open_])
            return np.concatenate([(theta[0] - np.exp(theta[1]) * np.log(inside) - y) / self.scale, pulls, worth])

        def jacobian(theta: FloatArray) -> FloatArray:
            s, inside = parts(theta)
            b = np.exp(theta[1])
            rows = [np.ones(len(y)), -b * np.log(inside), -b * np.exp(theta[2]) / inside]
            columns = np.column_stack([*rows, -b * (x * s / inside[:, None])[:, open_]]) / self.scale
            below = np.zeros((2 + open_.sum(), 3 + open_.sum()))
            below[0, 1] = below[1, 2] = self.prior
            below[np.arange(2, len(below)), np.arange(3, below.shape[1])] = pull[open_]
            return np.vstack([columns, below])

        starts = [np.r_[y.min(), -2.5, -2.5 - k, np.where(np.isnan(fixed), centre, 0)[open_]] for k in range(3)]
        best = min(
            (least_squares(residuals, t, jacobian, method="lm", max_nfev=300) for t in starts), key=lambda f: f.cost
        ).x
        return float(best[0]), float(np.exp(best[1])), float(np.exp(best[2])), parts(best)[0]


def hierarchical(numbers: Numbers, kind: str, looks: bool = True) -> Losses:
    """The product's law in effective tokens: priors pooled over sets, `rho` by marginal likelihood, repeated tokens worth less."""
    tokens, losses = numbers.looks(kind)
    stage = numbers.facts["lengths"]["stage"] * numbers.facts["step_tokens"]
    count, every = len(numbers.domains) + 1, (len(tokens) - 1) // (len(numbers.domains) + 1)
    names = ["base", *(f"probe {k}" for k in range(count) for _ in range(every))]
    kept = np.arange(len(tokens)) if looks else np.array([0, *range(every, len(tokens), every)])
    sums = tokens.sum(axis=1)
    shares = tokens / np.where(sums > 0, sums, 1.0)[:, None]
    shares[0] = numbers.uniform
    fit = fit_effective_tokens(
        shares[kept],
        sums[kept] * stage,
        losses[kept],
        domains=numbers.domains,
        metrics=numbers.sets,
        probes=[names[i] for i in kept],
        stage_tokens=stage,
        unique_tokens=numbers.facts["available"],
    )
    return lambda p: fit.law.predict(np.atleast_2d(p))


def optimum(losses: Losses, weights: FloatArray, reference: FloatArray, kl: float = 0.0) -> FloatArray:
    """Mixture of the lowest weighted loss plus `kl` KL(p || reference), (D,); softmax coordinates, several starts."""
    count = len(reference)

    def values(p: FloatArray) -> FloatArray:
        return np.asarray(losses(p) @ weights + kl * np.sum(p * np.log(np.maximum(p, 1e-12) / reference), axis=1))

    def value_and_slope(z: FloatArray) -> tuple[float, FloatArray]:
        found = values(softmax(np.vstack([z, z + 1e-5 * np.eye(count)])))
        return float(found[0]), (found[1:] - found[0]) / 1e-5

    starts = [np.log(reference), *(np.log(np.full(count, 0.05) + 0.7 * np.eye(count)[k]) for k in range(count))]
    # Bounds keep shares above about 1e-4: the law cannot tell less from nothing, and a corner is flat in these coordinates.
    found = [minimize(value_and_slope, s, jac=True, method="L-BFGS-B", bounds=[(-9, 1)] * count) for s in starts]
    return softmax(min(found, key=lambda f: float(f.fun)).x)


def softmax(z: FloatArray) -> FloatArray:
    shifted = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
