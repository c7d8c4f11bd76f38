"""Realistic run folders for the report: a known world, noisy points, laws and draws near the truth."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.protocols.mixing_method import DecisionProblem
from opmix.results.draws import LawDrawsFile
from opmix.results.mixture import CheckEntry, MixtureFile
from opmix.testing import FakeContext, log_linear_surface

NOISE = 0.004
PILE = (
    "arxiv",
    "books3",
    "cc",
    "dm_mathematics",
    "enron_emails",
    "europarl",
    "freelaw",
    "github",
    "gutenberg",
    "hackernews",
    "nih_exporter",
    "philpapers",
    "pubmed_abstracts",
    "pubmed_central",
    "stackexchange",
    "uspto",
    "wikipedia",
)


@dataclass
class World:
    """Laws over domains, and the coordinates that can be varied."""

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    coordinates: dict[str, dict[str, float]]
    c: np.ndarray
    t: np.ndarray
    current: dict[str, float] | None = None
    kl: float = 0.05
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def A(self) -> np.ndarray:  # noqa: N802  (the coordinates' matrix, as in the package)
        return np.array([[m.get(d, 0.0) for d in self.domains] for m in self.coordinates.values()])

    @property
    def prior(self) -> np.ndarray:
        used = self.A.sum(axis=0) > 0
        return used / used.sum()

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        return self.c + np.exp(np.atleast_2d(mixtures) @ self.t.T)

    def objective(self, x: np.ndarray, kl: float, worst: np.ndarray | None = None) -> float:
        p = np.maximum(self.A.T @ x, 1e-300)
        used = self.prior > 0
        pull = float(np.sum(p[used] * np.log(p[used] / self.prior[used])))
        gains = np.exp(p @ self.t.T)
        return float((gains.mean() if worst is None else (self.c + gains - worst).max()) + kl * pull)

    def solve(self, kl: float, ceilings: np.ndarray | None = None, worst: np.ndarray | None = None) -> np.ndarray:
        """The oracle: scipy's SLSQP on coordinates, with an epigraph variable in the worst case."""
        size = len(self.A)
        upper = np.ones(size) if ceilings is None else ceilings
        start = upper / upper.sum()
        sums = {"type": "eq", "fun": lambda y: y[:size].sum() - 1}
        bounds = [(1e-12, float(u)) for u in upper]
        options = {"maxiter": 2000, "ftol": 1e-14}
        if worst is None:
            made = minimize(lambda x: self.objective(x, kl), start, bounds=bounds, constraints=[sums], options=options)
            return made.x / made.x.sum()

        def pull(y: np.ndarray) -> float:
            p, used = np.maximum(self.A.T @ y[:size], 1e-300), self.prior > 0
            return float(y[size] + kl * np.sum(p[used] * np.log(p[used] / self.prior[used])))

        def slack(y: np.ndarray) -> np.ndarray:
            return y[size] - (self.losses(self.A.T @ y[:size])[0] - worst)

        above = {"type": "ineq", "fun": slack}
        made = minimize(
            pull,
            np.append(start, self.losses(self.A.T @ start).max() + 1),
            bounds=[*bounds, (None, None)],
            constraints=[sums, above],
            options=options,
        )
        return made.x[:size] / made.x[:size].sum()


def make_world(
    domains: tuple[str, ...],
    metrics: tuple[str, ...],
    *,
    coordinates: dict[str, dict[str, float]] | None = None,
    current: dict[str, float] | None = None,
    strength: float = 1.0,
    seed: int = 0,
) -> World:
    """Every domain helps its own eval set; related ones a little."""
    rng = np.random.default_rng(seed)
    t = rng.normal(-0.1, 0.12, (len(metrics), len(domains))) * strength
    for e, metric in enumerate(metrics):
        if metric in domains:
            t[e, domains.index(metric)] -= strength * rng.uniform(0.7, 1.3)
    coordinates = coordinates or {d: {d: 1.0} for d in domains}
    return World(domains, metrics, coordinates, rng.uniform(1.2, 2.6, len(metrics)), t, current, rng=rng)


def _named(names: tuple[str, ...], values: Any) -> dict[str, float]:
    return {n: float(v) for n, v in zip(names, values, strict=True)}


def write_sample(
    folder: Path,
    world: World,
    *,
    num_points: int,
    kind: str = "search",
    compare: bool = False,
    check: bool = True,
) -> Path:
    """Write a run folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    size = len(world.A)
    points = (
        np.stack([1 - (g := np.arange(1, 10) / 10), g], axis=1)
        if size == 2
        else world.rng.dirichlet(np.ones(size), num_points)
    )
    ratios = points @ world.A
    losses = world.losses(ratios) + world.rng.normal(0, NOISE, (len(points), len(world.metrics)))
    _write_points(folder / "tables" / "proxies.csv", world, points, ratios, losses)
    wiggle = 0.02 if size == 2 else 0.05
    draws_t = world.t + world.rng.normal(0, wiggle, (48, *world.t.shape)) * np.array(world.prior > 0)
    draws_c = world.c + world.rng.normal(0, 0.002, (48, len(world.metrics)))
    # Keep each draw true to the data's centre, as a posterior is: errors grow away from it.
    centre = ratios.mean(axis=0)
    draws_c += np.exp(world.t @ centre) - np.exp(draws_t @ centre)
    _dump(
        folder / "law_draws.json",
        {"c": draws_c.tolist(), "t": draws_t.tolist(), "metrics": world.metrics, "domains": world.domains},
    )
    document = _document(world, kind, len(points), check)
    _dump(folder / "mixture.json", document)
    _dump(
        folder / "timing.json",
        {
            "created": "2026-11-24T09:30:00+00:00",
            "solver_seconds": 0.0061,
            "seconds": {},
            "cost": {"probes": 96.2, "proxies": 41.7, "laws": 0.04, "solve": 0.006},
        },
    )
    _dump(
        folder / "manifest.json",
        {
            "command": f"opmix {kind} config.yaml",
            "seed": 0,
            "versions": {"opmix": "0.1.0"},
            "config": {"budget": 2_000_000, "probe": {"steps": 100, "rank": 16}},
        },
    )
    if compare:
        _dump(folder / "comparison.json", _comparison(world, document))
    return folder


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_points(path: Path, world: World, points: np.ndarray, ratios: np.ndarray, losses: np.ndarray) -> None:
    header = ["proxy", "kind", *(f"w_{c}" for c in world.coordinates), *(f"ratio_{d}" for d in world.domains)]
    header += [*(f"loss_{m}" for m in world.metrics), *(f"se_{m}" for m in world.metrics)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i in range(len(points)):
            errors = [NOISE] * len(world.metrics)
            writer.writerow([f"point-{i}", "proxy", *points[i], *ratios[i], *losses[i], *errors])


def _document(world: World, kind: str, num_points: int, check: bool) -> dict[str, Any]:
    optimum = world.A.T @ world.solve(world.kl)
    reference = np.array([world.current.get(d, 0.0) for d in world.domains]) if world.current else world.prior
    rivals = {
        "proposal": optimum,
        "uniform": world.prior,
        ("current" if world.current else "size"): reference,
    }
    rivals["prior"] = world.prior
    if not world.current:
        rivals["size"] = world.rng.dirichlet(np.ones(len(world.domains)) * 3)
    at_reference = world.losses(reference)[0].mean()
    alternatives = [_alternative(world, name, p, at_reference) for name, p in rivals.items()]
    gain = alternatives[0]["gain"]
    spread = 0.25 * optimum * (1 - optimum) + 0.01 * (world.prior > 0)
    used = world.domains
    document: dict[str, Any] = {
        "schema": 1,
        "kind": kind,
        "mixture": _named(used, optimum),
        "optimum": _named(used, optimum),
        "interval": {d: [max(0, p - s), min(1, p + 1.2 * s)] for d, p, s in zip(used, optimum, spread, strict=True)},
        "interval_level": 0.9,
        "decision": {
            "action": "move",
            "reference": "current" if world.current else "uniform",
            "gain": gain,
            "reason": "move: the proposal lowers the mean held-out loss by more than this search's noise",
            "gain_interval": [0.6 * gain, 1.4 * gain],
            "probability": 0.97,
            "confidence": 0.9,
            "noise": 0.004,
        },
        "laws": {
            m: {
                "c": float(world.c[e]),
                "t": _named(used, world.t[e]),
                "huber": 1.1e-5,
                "rmse": 0.0036,
                "loo_rmse": 0.0049,
                "spearman": 0.991,
                "loo_spearman": 0.978,
                "num_points": num_points,
                "rank": len(world.A),
            }
            for e, m in enumerate(world.metrics)
        },
        "alternatives": alternatives,
        "solver": {
            "status": "optimal",
            "objective": alternatives[0]["objective"],
            "gap": 3.1e-9,
            "max_violation": 0.0,
            "iterations": 14,
        },
        "settings": {
            "objective": "mean",
            "kl": world.kl,
            "prior": _named(used, world.prior),
            "constraints": ["at most 3 epochs of every domain", "share of code at most 40 %"],
        },
        "coordinates": None,
        "units": "nats per token",
    }
    if any(list(m.values()) != [1.0] for m in world.coordinates.values()):
        document["coordinates"] = {"names": list(world.coordinates), "mixtures": world.coordinates}
    if kind == "search":
        document |= _search_parts(world, optimum, check)
    return document


def _alternative(world: World, name: str, p: np.ndarray, at_reference: float) -> dict[str, Any]:
    losses = world.losses(p)[0]
    gain = float(at_reference - losses.mean())
    return {
        "name": name,
        "mixture": _named(world.domains, p),
        "predicted": _named(world.metrics, losses),
        "objective": float(losses.mean()),
        "gain": gain,
        "feasible": name != "size",
        "gain_interval": [gain - 0.3 * abs(gain) - 0.001, gain + 0.3 * abs(gain) + 0.001],
        "note": "asks for 4.1 epochs of math" if name == "size" else "",
        "measured": None,
    }


def _search_parts(world: World, optimum: np.ndarray, check: bool) -> dict[str, Any]:
    now = world.losses(world.prior)[0] + world.rng.uniform(0.02, 0.2, len(world.metrics))
    twins = [
        {
            "mixture": _named(world.domains, optimum),
            "a": "joint probe",
            "b": "average of probes",
            "difference": _named(world.metrics, world.rng.normal(0.006, 0.006, len(world.metrics))),
            "standard_error": _named(world.metrics, np.full(len(world.metrics), 0.003)),
        }
    ]
    return {
        "baseline": _named(world.metrics, now),
        "bytes_per_token": dict.fromkeys(world.metrics, 3.8),
        "check": {
            "available": check,
            "twins": twins,
            "worst": 0.012,
            "verdict": "A probe trained on the mixture itself and the average of the probes differ by at most "
            "0.012 nats: little beside the predicted gain. The intervals have been widened by it.",
        },
        "cost": {
            "tokens": {"probes": 1_228_800, "proxies": 1_900_000},
            "flops": {"probes": 2.1e13, "proxies": 9.4e12, "stage": 3.2e14},
            "search_share": 0.095,
        },
    }


def _comparison(world: World, document: dict[str, Any]) -> dict[str, Any]:
    arms = {}
    for name in ("proposal", "uniform"):
        entry = next(a for a in document["alternatives"] if a["name"] == name)
        truth = np.array(list(entry["predicted"].values()))
        measured = truth - 0.05 + world.rng.normal(0, 0.008, len(truth))
        arms[name] = {
            "mixture": entry["mixture"],
            "predicted": entry["predicted"],
            "measured": _named(world.metrics, measured),
        }
    means = {n: float(np.mean(list(a["measured"].values()))) for n, a in arms.items()}
    winner = min(means, key=means.__getitem__)
    margin = abs(means["proposal"] - means["uniform"])
    sentence = f"Trained on 2.0 M tokens each, {winner} ends {margin:.3f} nats lower on average."
    return {"tokens": 2_000_000, "arms": arms, "winner": winner, "sentence": sentence}


def continual_world() -> World:
    """Two coordinates: `old` (three domains) and one new domain."""
    old = {"medical": 0.5, "web": 0.3, "code": 0.2}
    domains = ("medical", "web", "code", "math")
    world = make_world(
        domains, domains, coordinates={"old": old, "math": {"math": 1.0}}, current=old, strength=0.7, seed=3
    )
    world.current = old
    return world


def rebalancing_world() -> World:
    """Six domains, every one a coordinate, moving away from a skewed current mixture."""
    domains = ("arxiv", "c4", "open_web_math", "reddit", "stackexchange", "code")
    current = dict(zip(domains, (0.08, 0.52, 0.05, 0.2, 0.1, 0.05), strict=True))
    return make_world(domains, domains, current=current, seed=5)


def swarm_world() -> World:
    """Seventeen domains and thirteen eval sets, as a fit on somebody's finished runs."""
    return make_world(PILE, PILE[:13], strength=1.6, seed=7)


def large_world(size: int = 64) -> World:
    """As many domains and eval sets as the report promises to stand."""
    names = tuple(f"domain_{i:02d}" for i in range(size))
    return make_world(names, names, current=dict.fromkeys(names, 1 / size), strength=3.0, seed=11)


def write_trained(folder: Path, domains: tuple[str, ...] = ("web", "code", "math")) -> Path:
    """What a search with the law in effective tokens writes, on a known world in which the last domain has to repeat itself."""
    size, stage = len(domains), 32_000
    rng = np.random.default_rng(1)
    worth = rng.uniform(0.0, 0.3, (size, size)) + np.diag(rng.uniform(3.0, 12.0, size))
    base, b = rng.uniform(2.0, 3.0, size), rng.uniform(0.1, 0.3, size)

    def course(tokens: np.ndarray) -> np.ndarray:
        return base - b * np.log1p((tokens / 6400) ** 0.7 @ worth.T)

    problem = DecisionProblem(
        domains=domains,
        old=Mixture.of({d: 0.8 if i == 0 else 0.2 / (size - 1) for i, d in enumerate(domains)}),
        budget_tokens=stage,
        available_tokens={d: stage // 50 if d == domains[-1] else 10 * stage for d in domains},
    )
    fake = FakeContext(
        problem=problem,
        surface=log_linear_surface([[0.0] * size] * size),
        course=course,
        settings=SolveSettings(kl=0.01),
        rule=DecisionSettings(draws=20),
        noise=0.02,
    )
    found = TrainedProbes(steps=64).propose(fake)
    file = MixtureFile.of(
        "search",
        found.fit,
        found.verdict,
        check=CheckEntry.of(found.check),
        baseline=dict(found.baseline),
        evidence=found.evidence,
    )
    (folder / "tables").mkdir(parents=True)
    file.write(folder)
    LawDrawsFile.of(found.verdict.draws).write(folder)
    found.table.write(folder / "tables" / "proxies.csv")
    return folder


def write_all(root: Path) -> dict[str, Path]:
    """The three standard samples."""
    return {
        "continual": write_sample(root / "continual", continual_world(), num_points=9),
        "rebalancing": write_sample(root / "rebalancing", rebalancing_world(), num_points=20, compare=True),
        "swarm": write_sample(root / "swarm", swarm_world(), num_points=512, kind="fit"),
    }
