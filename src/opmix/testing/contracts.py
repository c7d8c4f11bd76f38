"""What opmix expects of every mixing method, law and exporter, its own included: call these in your tests. Imports no torch.

Each raises `AssertionError` with the promise that was broken.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from opmix.domain import Source
from opmix.errors import ConfigError, DataError, LawError
from opmix.exporters import MixtureExporter
from opmix.exporters.plan import DomainPlan, MixturePlan
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.solver import solve
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import DecisionProblem, MixingMethod
from opmix.runs.files import plain
from opmix.testing.fake_context import FakeRunner, log_linear_surface

_DOMAINS = ("web", "code", "math")
_SURFACE = log_linear_surface([[-1.0, 0.1, 0.2], [0.2, -1.5, 0.1], [0.1, 0.0, -2.0]])
_AWKWARD = 'data/it\'s "quoted" ${HOME} $(touch x) `id` #1: {b}\\.jsonl'


FitLaw = Callable[..., LawFit]
"""`fit(mixtures (M, D), losses (M, E), *, domains, metrics)`."""


def _promise(held: bool | np.bool_, what: str) -> None:
    if not held:
        raise AssertionError(what)


# -- methods -------------------------------------------------------------------------------------------------------


def check_method(make: Callable[[], MixingMethod], *, seed: int = 0) -> None:
    """Hold a mixing method to its contract, on losses that are known: nothing is trained.

    Args:
        make: Returns a new method; settings that make it quick are fine.
        seed: Of the decision.

    Raises:
        AssertionError: It proposes no mixture over the decision's domains, another one the second time, or evidence that is no JSON;
            or it fails on old, new or two domains.
    """
    for name, problem in _problems(seed):
        first, again = (make().propose(FakeRunner(problem=problem, surface=_surface(problem))) for _ in range(2))
        _promise(first.mixture.names == problem.domains, f"{name}: over {first.mixture.names}, not {problem.domains}")
        _promise(np.all(np.isfinite(first.mixture.weights)), f"{name}: shares are not finite")
        same = np.array_equal(first.mixture.weights, again.mixture.weights)
        _promise(same, f"{name}: the same decision twice gives {first.mixture} and {again.mixture}")
        text = json.dumps(plain(dict(first.evidence)), allow_nan=False)
        _promise(text == json.dumps(plain(dict(again.evidence)), allow_nan=False), f"{name}: evidence differs")


def _surface(problem: DecisionProblem) -> Callable[[FloatArray], FloatArray]:
    size = len(problem.domains)
    return lambda rows: _SURFACE(np.pad(rows, ((0, 0), (0, 3 - size))))[:, :size]


def _problems(seed: int) -> Iterator[tuple[str, DecisionProblem]]:
    problems: dict[str, tuple[tuple[str, ...], dict[str, float] | None]] = {
        "no mixture in use": (_DOMAINS, None),
        "a mixture in use": (_DOMAINS, {"web": 0.5, "code": 0.3, "math": 0.2}),
        "a new domain": (_DOMAINS, {"web": 0.6, "code": 0.4}),
        "two domains": (_DOMAINS[:2], {"web": 0.6, "code": 0.4}),
    }
    for name, (domains, old) in problems.items():
        yield (
            name,
            DecisionProblem(
                domains=domains,
                old=None if old is None else Mixture.of(old),
                budget_tokens=1_000_000,
                available_tokens=dict.fromkeys(domains, 4_000_000),
                seed=seed,
            ),
        )


# -- laws ----------------------------------------------------------------------------------------------------------


def check_law(fit: FitLaw, *, points: int = 24, solves: bool = True) -> None:
    """Hold a mixing law and its fit to their contract, on losses of a known convex surface.

    Args:
        fit: Fits the law.
        points: Mixtures it is given, M.
        solves: Whether to solve for the optimum too.

    Raises:
        AssertionError: Shapes, convexity, gradient, draws or record are not as `opmix.protocols.law` says, the surface's best mixture
            is missed, or losses that are no numbers are fitted.
    """
    rng = np.random.default_rng(0)
    mixtures, metrics = rng.dirichlet(np.ones(3), points), ("a", "b", "c")
    losses = _SURFACE(mixtures)
    made = fit(mixtures, losses, domains=_DOMAINS, metrics=metrics)
    again = fit(mixtures, losses, domains=_DOMAINS, metrics=metrics)
    law, p, q = made.law, *rng.dirichlet(np.ones(3), (2, 16))
    _promise(law.domains == _DOMAINS and law.metrics == metrics, f"names: {law.domains}, {law.metrics}")
    told = law.predict(p)
    _promise(told.shape == (16, 3), f"predict: shape {told.shape}; expected (16, 3)")
    _promise(np.array_equal(told, again.law.predict(p)), "the same fit twice predicts otherwise")
    _promise(np.allclose(told, law.constant + law.varying(p)), "predict is not constant + varying")
    middle = (told + law.predict(q)) / 2 - law.predict((p + q) / 2)
    _promise(middle.min() > -1e-9, f"losses are not convex in the mixture: {middle.min():g} nats at a midpoint")
    _check_gradient(made, p)
    _check_fit(made, mixtures, losses)
    _check_draws(made, p)
    broken = losses.copy()
    broken[0, 0] = np.nan
    try:
        fit(mixtures, broken, domains=_DOMAINS, metrics=metrics)
    except (LawError, DataError):
        pass
    else:
        raise AssertionError("a loss that is no number was fitted; expected LawError")
    if solves:
        best = solve(law, settings=SolveSettings(kl=0.0))
        found, spread = _SURFACE(best.mixture.weights[None]).mean(), np.ptp(losses.mean(axis=1))
        lowest = _SURFACE(rng.dirichlet(np.ones(3), 4000)).mean(axis=1).min()
        _promise(found < lowest + 0.1 * spread, f"the optimum is {found - lowest:.4f} nats above the surface's best")


def _check_gradient(made: LawFit, p: FloatArray) -> None:
    step = 1e-6 * (np.eye(3)[0] - np.eye(3)[1])
    for row in p[p[:, :2].min(axis=1) > 1e-3]:
        told = made.law.gradient(row) @ step
        seen = (made.law.predict(row + step) - made.law.predict(row - step))[0] / 2
        _promise(np.allclose(told, seen, rtol=1e-3, atol=1e-10), f"gradient: {told}; differences say {seen}")


def _check_fit(made: LawFit, mixtures: FloatArray, losses: FloatArray) -> None:
    shapes = {name: getattr(made, name).shape for name in ("losses", "fitted", "residuals", "misfit")}
    _promise(set(shapes.values()) == {losses.shape}, f"fit: shapes {shapes}; expected {losses.shape} of each")
    _promise(len(made.quality) == losses.shape[1], "quality: expected one a metric")
    error = np.abs(made.fitted - losses).max()
    _promise(error < 0.1 * np.ptp(losses), f"the points are met within {error:.4f} nats of {np.ptp(losses):.4f}")
    most = made.most(lambda rows: rows.mean(axis=1))
    _promise(most > 0, f"most: {most}; expected the largest gain that points bear out")
    for metric in range(losses.shape[1]):
        json.dumps(plain(made.law.json(metric)), allow_nan=False)


def _check_draws(made: LawFit, p: FloatArray) -> None:
    draws, again = (made.draws(num_draws=20, seed=3) for _ in range(2))
    told = draws.predict(p)
    _promise(len(draws) == 20 and told.shape == (20, *made.law.predict(p).shape), f"draws: shape {told.shape}")
    _promise(bool(np.isfinite(told).all()), "draws: predictions that are no numbers")
    _promise(np.array_equal(told, again.predict(p)), "draws: the same seed draws otherwise")
    _promise(np.allclose(told[7], draws.law(7).predict(p)), "draws: law(i) is not draw i")
    _promise(np.allclose(told[[2, 5]], draws.take([2, 5]).predict(p)), "draws: take([2, 5]) holds others")
    each = draws.predict_each(np.repeat(p[None], 20, axis=0))
    _promise(np.allclose(each, told), "draws: predict_each differs from predict at the same mixtures")
    json.dumps(plain(draws.json()), allow_nan=False)


# -- exporters -----------------------------------------------------------------------------------------------------


def check_exporter(exporter: MixtureExporter, read: Callable[[str], Any] | None = None) -> None:
    """Hold an exporter to its contract.

    Args:
        exporter: Of one trainer's format.
        read: Reads its text as the trainer would, and raises where that cannot; None: by the suffix (YAML, JSON, Python, shell).

    Raises:
        AssertionError: The text cannot be read, differs the second time, names a domain without a share or none, is not escaped, or
            another unit is taken for the exporter's own.
    """
    for name in ("name", "trainer", "unit", "suffix", "limits"):
        _promise(bool(getattr(exporter, name, None)), f"{name}: missing")
    _promise(bool(exporter.__doc__), "no docstring: what do the trainer's weights mean?")
    read = read or _reader(exporter.suffix)
    plan = example_plan()
    export = exporter.export(plan)
    _promise(exporter.export(plan) == export, "the same plan twice gives another export")
    _readable(read, export.text)
    _promise(list(export.weights) == list(plan.names), f"weights: of {list(export.weights)}, not {list(plan.names)}")
    good = all(np.isfinite(w) and w > 0 for w in export.weights.values())
    _promise(good, f"weights: {dict(export.weights)}; expected numbers > 0")
    for told in (*(f"{share:.4f}" for share in (0.6, 0.4)), *plan.dropped, *export.warnings, *export.notes):
        _promise(told in export.text, f"the text does not say {told!r}; `opmix.exporters.base.assemble` does")
    for path in (_AWKWARD, "data/plain name.jsonl"):
        try:
            text = exporter.export(example_plan(path)).text
        except (ConfigError, DataError):  # said, and nothing is written
            continue
        _readable(read, text)
    other: Any = "tokens" if export.unit == "documents" else "documents"
    try:
        changed = exporter.export(replace(plan, unit=other))
    except ConfigError:
        return
    _promise(changed.unit == other, f"--unit {other} was passed over: {changed.unit}")


def _readable(read: Callable[[str], Any], text: str) -> None:
    try:
        read(text)
    except Exception as error:
        raise AssertionError(f"the text cannot be read: {error}") from error


def example_plan(path: str = "data/web.jsonl") -> MixturePlan:
    """Two domains of lines with a text, one dropped; `path` is the first one's file."""
    paths = {"web": path, "code": "data/code.jsonl"}
    return MixturePlan(
        origin="runs/example",
        kind="search",
        budget=1_000_000,
        sequence_length=512,
        dropped=("poems",),
        domains=tuple(
            DomainPlan(
                name=name,
                share=share,
                source=Source(paths=(paths[name],), format="jsonl", field="text"),
                path=paths[name].removesuffix(".jsonl"),
                tokens=2_000_000,
                row_tokens=250.0,
            )
            for name, share in (("web", 0.6), ("code", 0.4))
        ),
    )


def _reader(suffix: str) -> Callable[[str], Any]:
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": yaml.safe_load,
        ".json": json.loads,
        ".py": ast.parse,
        ".sh": _shell,
    }
    if suffix not in readers:
        raise AssertionError(f"suffix: {suffix!r}; pass `read`, which reads the text as the trainer would")
    return readers[suffix]


def _shell(text: str) -> None:
    if (shell := shutil.which("bash")) is not None:
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
        _promise(done.returncode == 0, f"bash cannot read it: {done.stderr}")
