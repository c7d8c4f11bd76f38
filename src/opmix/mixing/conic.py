"""The convex mixture problem in the form a conic solver (Clarabel) takes, for any law that gives its cones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from opmix.mixing.constraints import LinearRow
from opmix.mixing.mixture import FloatArray
from opmix.protocols.law import ConicForm

Objective = Literal["mean", "weighted", "worst_case", "perplexity"]

ATTEMPTS: tuple[Mapping[str, Any], ...] = (
    {"max_iter": 200, "tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-11},
    {"max_iter": 400, "tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9, "max_step_fraction": 0.95},
    {"max_iter": 400, "tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "equilibrate_enable": False},
)
"""Clarabel's settings in the order they are tried; the first are what a certificate needs where prior shares are tiny."""

Affine = tuple[FloatArray, float]
"""A row over all variables and its right-hand side."""


@dataclass(frozen=True)
class _Sparse:
    """What Clarabel reads of a scipy.sparse.csc_matrix; importing scipy.sparse takes longer than many solves."""

    data: FloatArray
    indices: npt.NDArray[np.intp]
    indptr: npt.NDArray[np.intp]
    shape: tuple[int, int]
    has_canonical_format: ClassVar[bool] = True
    has_sorted_indices: ClassVar[bool] = True

    @classmethod
    def of(cls, dense: FloatArray) -> _Sparse:
        columns, rows = np.nonzero(dense.T)
        starts = np.searchsorted(columns, np.arange(dense.shape[1] + 1))
        return cls(dense[rows, columns], rows, starts, (dense.shape[0], dense.shape[1]))

    def __getattr__(self, name: str) -> Any:
        """Anything else that a later Clarabel may ask for, of scipy's own matrix."""
        if name.startswith("__"):
            raise AttributeError(name)
        from scipy import sparse

        return getattr(sparse.csc_matrix((self.data, self.indices, self.indptr), self.shape), name)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is minimised; None in a program: nothing, any feasible point will do."""

    objective: Objective
    omega: FloatArray  # (U,) adds up to one
    reference: FloatArray  # (U,) nats, worst case; infinite: never the worst
    kl: float
    prior: FloatArray  # (D,)


@dataclass(frozen=True, kw_only=True)
class ConicProgram:
    """Variables: coordinates x (C), varying losses u (U), KL terms s (S), bound tau, the law's own w (A), perplexities y (Y)."""

    E: FloatArray  # (C, D); p = E^T x
    form: ConicForm
    constant: FloatArray  # (U,) of the used evaluation sets
    rows: Sequence[LinearRow]
    limits: Sequence[tuple[int, float]]
    """Used evaluation set, highest loss."""
    goal: Goal | None
    kl_on: tuple[int, ...] = field(init=False)
    """Domains with a KL term."""

    def __post_init__(self) -> None:
        kl = self.goal is not None and self.goal.kl > 0
        on = tuple(np.flatnonzero(self.goal.prior > 0)) if kl and self.goal is not None else ()
        object.__setattr__(self, "kl_on", on)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        perplexity = self.goal is not None and self.goal.objective == "perplexity"
        return len(self.E), len(self.constant), len(self.kl_on), len(self.constant) if perplexity else 0

    def _unit(self, index: int) -> FloatArray:
        C, U, S, Y = self._sizes
        row = np.zeros(C + U + S + 1 + self.form.auxiliary + Y)
        row[index] = 1.0
        return row

    def _lifted(self, row: FloatArray) -> FloatArray:
        """A row over (p, u, w) as one over all variables."""
        _, U, S, Y = self._sizes
        domains = self.E.shape[1]
        return np.concatenate(
            [self.E @ row[:domains], row[domains : domains + U], np.zeros(S + 1), row[domains + U :], np.zeros(Y)]
        )

    def _cost(self) -> FloatArray:
        C, U, S, _ = self._sizes
        cost = np.zeros(len(self._unit(0)))
        if self.goal is None:
            return cost
        bounded = self.goal.objective in ("worst_case", "perplexity")
        cost[C : C + U] = 0.0 if bounded else self.goal.omega
        cost[C + U : C + U + S] = self.goal.kl
        cost[C + U + S] = 1.0 if bounded else 0.0
        return cost / max(1.0, self.goal.kl)  # the solver's tolerances are absolute

    def _equal(self) -> list[Affine]:
        C, U, S, _ = self._sizes
        rows = [(np.append(np.ones(C), np.zeros(len(self._unit(0)) - C)), 1.0)]
        if self.goal is None or self.goal.objective in ("mean", "weighted"):
            rows.append((self._unit(C + U + S), 0.0))
        return rows

    def _below(self) -> list[Affine]:
        """`row @ variables <= bound`."""
        C, U, S, Y = self._sizes
        rows: list[Affine] = [(-self._unit(i), 0.0) for i in range(C)]
        none = np.zeros(U + self.form.auxiliary)
        rows += [(self._lifted(np.append(r.row, none)), r.bound) for r in self.rows]
        rows += [(self._unit(C + i), limit - self.constant[i]) for i, limit in self.limits]
        if self.goal is not None and self.goal.objective == "worst_case":
            tau = self._unit(C + U + S)
            counted = [i for i in range(U) if np.isfinite(self.goal.reference[i])]
            rows += [(self._unit(C + i) - tau, self.goal.reference[i] - self.constant[i]) for i in counted]
        if self.goal is not None and Y:
            rows.append((np.append(np.zeros(len(self._unit(0)) - Y), self.goal.omega), 1.0))
        if self.form.rows is not None and self.form.bounds is not None:
            rows += [(self._lifted(row), bound) for row, bound in zip(self.form.rows, self.form.bounds, strict=True)]
        return rows

    def _exponential(self) -> list[Affine]:
        """KL and perplexity: triples `b - row @ variables` in the exponential cone."""
        C, U, S, Y = self._sizes
        none, rows = np.zeros(len(self._unit(0))), []
        if self.goal is None:
            return []
        for i, d in enumerate(self.kl_on):  # p log(p / q) <= s  <=>  p exp(-s / p) <= q
            share = np.append(-self.E[:, d], np.zeros(len(none) - C))
            rows += [(self._unit(C + U + i), 0.0), (share, 0.0), (none, float(self.goal.prior[d]))]
        for i in range(Y):  # exp(constant + u - tau) <= y
            rise = self._unit(C + U + S) - self._unit(C + i)
            rows += [(rise, self.constant[i]), (none, 1.0), (-self._unit(len(none) - Y + i), 0.0)]
        return rows

    def solve(self, options: Mapping[str, Any] = ATTEMPTS[0]) -> Any:
        """Clarabel's solution; `x[:C]` are the coordinates."""
        import clarabel

        equal, below, exponential = self._equal(), self._below(), self._exponential()
        own = [(-self._lifted(m), b) for c in self.form.cones for m, b in zip(c.matrix, c.constant, strict=True)]
        everything = [*equal, *below, *own, *exponential]
        cones = [clarabel.ZeroConeT(len(equal)), clarabel.NonnegativeConeT(len(below))]
        cones += [
            clarabel.ExponentialConeT() if c.power is None else clarabel.PowerConeT(c.power) for c in self.form.cones
        ]
        cones += [clarabel.ExponentialConeT()] * (len(exponential) // 3)
        matrix = _Sparse.of(np.array([row for row, _ in everything]))
        chosen = clarabel.DefaultSettings()
        chosen.verbose = False
        for name, value in options.items():
            setattr(chosen, name, value)
        cost = self._cost()
        quadratic = _Sparse.of(np.zeros((len(cost), len(cost))))
        bounds = np.array([bound for _, bound in everything])
        return clarabel.DefaultSolver(quadratic, cost, matrix, bounds, cones, chosen).solve()
