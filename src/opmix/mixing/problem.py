"""The convex problem: min_p objective(losses of a law at p) + lambda KL(p || q) under constraints.

The variables are *coordinates* x on a simplex; `p = E^T x` are domains. Where old data is one coordinate, its
inner proportions stay what they were, because no probe has varied them; the KL term lives on domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix.errors import ConfigError, InfeasibleError
from opmix.mixing.conic import ConicProgram, Goal, Objective
from opmix.mixing.constraints import Constraints, LinearRow
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.numerics import logsumexp, softmax
from opmix.protocols.law import MixingLaw

SOLVED = ("Solved", "AlmostSolved")
"""Statuses of Clarabel that come with an answer."""


@dataclass(frozen=True)
class Coordinates:
    """The directions a search can tell apart: each stands for a mixture of domains.

    Overlap is allowed: a domain may be inside `old` and a coordinate of its own.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    E: FloatArray  # (C, D), rows on the simplex

    @classmethod
    def identity(cls, domains: Sequence[str]) -> Coordinates:
        """Every domain is its own coordinate."""
        return cls(tuple(domains), tuple(domains), np.eye(len(domains)))

    def mixture(self, x: FloatArray) -> Mixture:
        """`p = E^T x`."""
        return Mixture(self.domains, np.maximum(self.E.T @ x, 0) / np.maximum(self.E.T @ x, 0).sum())


@dataclass(frozen=True, kw_only=True)
class SolveSettings:
    """What is minimised.

    `mean`: the average loss over evaluation sets, less what no mixture changes (the paper's); `weighted`: with weights
    `omega` that add up to one; `worst_case`: the largest `loss_e - reference_e`; `perplexity`: the logarithm of the
    (weighted) mean perplexity, `log sum_e omega_e exp(loss_e)`, whose optimum is that of the mean perplexity itself.
    """

    objective: Objective = "mean"
    omega: FloatArray | None = None  # (E,)
    reference: FloatArray | None = None  # (E,) nats; worst_case only; None: zeros; infinite: never the worst
    kl: float = 0.05
    prior: Mixture | None = None  # None: uniform over domains

    def weights(self, num_metrics: int) -> FloatArray:
        """omega, normalised."""
        omega = np.ones(num_metrics) if self.omega is None or self.objective == "mean" else np.asarray(self.omega)
        if omega.shape != (num_metrics,) or np.any(omega < 0) or omega.sum() <= 0:
            raise ConfigError(f"objective weights {omega}; expected {num_metrics} numbers >= 0, at least one positive")
        return omega / omega.sum()


@dataclass(frozen=True)
class Problem:
    """One problem: objective, slope and violation at a mixture, exactly, and the conic program that Clarabel solves."""

    law: MixingLaw
    coordinates: Coordinates
    settings: SolveSettings
    constraints: Constraints
    rows: tuple[LinearRow, ...]
    q: FloatArray  # (D,)
    omega: FloatArray

    @property
    def E(self) -> FloatArray:  # noqa: N802  (the matrix of the docstring)
        """(C, D)."""
        return self.coordinates.E

    @classmethod
    def build(
        cls,
        law: MixingLaw,
        coordinates: Coordinates | None,
        settings: SolveSettings,
        constraints: Constraints,
    ) -> Problem:
        """Check what belongs together and lay the rules out as rows.

        Raises:
            ConfigError: Coordinates of other domains, or settings that cannot hold.
        """
        coordinates = coordinates or Coordinates.identity(law.domains)
        if coordinates.domains != law.domains:
            raise ConfigError(
                f"coordinates are over {coordinates.domains}, the law over {law.domains}; expected the same"
            )
        if not (np.isfinite(settings.kl) and settings.kl >= 0):
            raise ConfigError(f"kl: {settings.kl}; expected a number >= 0")
        constraints.check(law.domains, law.metrics)
        prior = settings.prior if settings.prior is not None else Mixture.uniform(law.domains)
        q = prior.on(law.domains).weights
        if settings.kl > 0 and np.any(q == 0):
            # KL is infinite where the prior has no mass: say so as a constraint rather than diverge.
            empty = {d: 0.0 for d, mass in zip(law.domains, q, strict=True) if mass == 0}
            constraints = replace(constraints, fixed={**empty, **constraints.fixed})
        rows = tuple(constraints.rows(law.domains))
        return cls(law, coordinates, settings, constraints, rows, q, settings.weights(len(law.metrics)))

    def _reference(self) -> FloatArray:
        reference = self.settings.reference
        return np.zeros(len(self.law.metrics)) if reference is None else np.asarray(reference, dtype=np.float64)

    def worst_gaps(self, p: FloatArray) -> FloatArray:
        """Losses less the reference, (E,)."""
        return self.law.predict(p[None])[0] - self._reference()

    def value(self, p: FloatArray) -> float:
        """Objective at a mixture (D,)."""
        used = p > 0
        kl = float(np.sum(p[used] * np.log(p[used] / np.maximum(self.q[used], 1e-300)))) if self.settings.kl else 0.0
        if self.settings.objective == "worst_case":
            return float(self.worst_gaps(p).max()) + self.settings.kl * kl
        if self.settings.objective == "perplexity":
            return float(logsumexp(self.law.predict(p[None])[0], self.omega)) + self.settings.kl * kl
        return float(self.omega @ self.law.varying(p[None])[0]) + self.settings.kl * kl

    def violation(self, p: FloatArray) -> float:
        """By how much the worst constraint is broken at a mixture, in shares or nats; 0: all hold."""
        worst = max((float(r.row @ p - r.bound) for r in self.rows), default=0.0)
        losses = dict(zip(self.law.metrics, self.law.predict(p[None])[0], strict=True))
        return max([worst, 0.0, *(losses[m] - limit for m, limit in self.constraints.max_loss.items())])

    def kl_slope(self, p: FloatArray) -> FloatArray:
        """Gradient of the KL term, (D,)."""
        if not self.settings.kl:
            return np.zeros(len(p))
        shares = np.maximum(p, 1e-290)
        return self.settings.kl * np.where(self.q > 0, np.log(shares / np.maximum(self.q, 1e-300)) + 1, 0.0)

    def slope(self, p: FloatArray) -> FloatArray:
        """Gradient of a mean objective or of the log mean perplexity, (D,)."""
        pull = self.omega
        if self.settings.objective == "perplexity":
            pull = softmax(np.log(np.maximum(self.omega, 1e-300)) + self.law.predict(p[None])[0])
        return self.kl_slope(p) + pull @ self.law.gradient(p)

    def _program(self, rows: Sequence[LinearRow], limits: Sequence[str], *, with_objective: bool) -> ConicProgram:
        metrics, settings = self.law.metrics, self.settings
        used = list(range(len(metrics))) if with_objective else [metrics.index(m) for m in limits]
        goal = Goal(
            objective=settings.objective, omega=self.omega, reference=self._reference(), kl=settings.kl, prior=self.q
        )
        return ConicProgram(
            E=self.E,
            form=self.law.conic(used),
            constant=self.law.constant[used],
            rows=rows,
            limits=[(used.index(metrics.index(m)), self.constraints.max_loss[m]) for m in limits],
            goal=goal if with_objective else None,
        )

    def conic(self, options: Mapping[str, Any]) -> tuple[FloatArray, str, int]:
        """Clarabel's answer (C,), its status and iterations.

        Raises:
            InfeasibleError: Names constraints that contradict each other.
        """
        program = self._program(self.rows, tuple(self.constraints.max_loss), with_objective=True)
        solution = program.solve(options)
        status, x = str(solution.status), np.maximum(np.array(solution.x[: self.E.shape[0]]), 0.0)
        if not (np.all(np.isfinite(x)) and x.sum() > 0):
            x = np.ones(len(x))
        if status in ("PrimalInfeasible", "AlmostPrimalInfeasible"):
            raise InfeasibleError(self._conflicts())
        if status not in SOLVED:  # the certificate decides, unless nothing is feasible
            conflicts = self._conflicts(check_only=True)
            if conflicts:
                raise InfeasibleError(conflicts)
        return x / x.sum(), status, int(solution.iterations)

    def _conflicts(self, *, check_only: bool = False) -> list[str]:
        """An irreducible set of contradictory constraints, by deletion: what remains is needed for the conflict."""
        labels = list(dict.fromkeys(r.label for r in self.rows)) + list(self.constraints.max_loss)

        def feasible(kept: Sequence[str]) -> bool:
            rows = tuple(r for r in self.rows if r.label in kept)
            limits = tuple(m for m in self.constraints.max_loss if m in kept)
            program = self._program(rows, limits, with_objective=False)
            return str(program.solve().status) in SOLVED

        if check_only and feasible(labels):
            return []
        kept = labels
        for label in labels:
            without = [other for other in kept if other != label]
            if not feasible(without):
                kept = without
        sentences = [self.constraints.loss_label(k) if k in self.constraints.max_loss else k for k in kept]
        if self.coordinates.names != self.coordinates.domains:
            sentences.append(f"shares add up to 1, and only {', '.join(self.coordinates.names)} can be varied")
        else:
            sentences.append("shares add up to 1")
        return sentences
