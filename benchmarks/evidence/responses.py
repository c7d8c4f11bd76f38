"""Responses: from one table of simulated models to the predicted gain over uniform of any mixture, and an optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from opmix.methods.base import Simulation
from opmix.mixing.design import StageDesign, interference
from opmix.mixing.law import LawFit, fit_law
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.slopes import SlopeTable, slope_table, value_noise
from opmix.mixing.solver import SolveSettings, solve

Predict = Callable[[FloatArray], float]
KL = 0.05


@dataclass(frozen=True)
class Table:
    """Points of one design, some of them with slopes."""

    design: StageDesign
    made: Simulation

    @property
    def weights(self) -> FloatArray:
        """(M, P)."""
        return np.array([w.weights for w in self.design.points])

    def slopes(self, points: Sequence[int], rows: Sequence[int]) -> SlopeTable:
        """Slopes at some points; `rows`: their numbers in the table of fitted values."""
        at = [self.made.slope_points.index(p) for p in points]
        table, _ = slope_table(
            self.weights[list(points)], rows, [s[at] for s in self.made.slopes], self.made.tokens,
            R=self.design.probes.R, gram=self.made.gram, value_noise=value_noise(self.made.nll, self.made.tokens),
        )  # fmt: skip
        return table


def _law(
    table: Table, values: Sequence[int], steep: Sequence[int] = (), *, gamma: bool = False
) -> tuple[Predict, Mixture]:
    values = list(values)
    slopes = table.slopes(steep, [values.index(s) for s in steep]) if steep else None
    fit: LawFit = fit_law(
        table.design.mixtures[values], table.made.losses[values], domains=table.design.probes.domains, metrics=table.made.metrics,
        interference=interference(table.weights[values], table.made.gram) if gamma else None, slopes=slopes,
    )  # fmt: skip
    uniform = Mixture.uniform(table.design.probes.domains)
    base = fit.law.predict(uniform.weights).mean()
    optimum = solve(fit.law, coordinates=table.design.coordinates, settings=SolveSettings(kl=KL, prior=uniform)).mixture
    return lambda p: float(base - fit.law.predict(p).mean()), optimum


def _linear(table: Table, point: int = 0) -> tuple[Predict, Mixture]:
    """First order at the jointly trained probe, with KL as the only curvature."""
    slopes = table.slopes([point], [0])
    gradient = np.linalg.lstsq(slopes.directions, slopes.losses.mean(axis=1), rcond=None)[0]
    uniform = Mixture.uniform(table.design.probes.domains)
    tilted = uniform.weights * np.exp(-(gradient - gradient.mean()) / KL)
    return lambda p: float(-gradient @ (p - uniform.weights)), Mixture(uniform.names, tilted / tilted.sum())


def _inner(table: Table, count: int) -> list[int]:
    kinds = table.design.kinds
    return [0, *[i for i, k in enumerate(kinds) if k == "proxy"][1:count]]


def _published(table: Table) -> tuple[Predict, Mixture]:
    return _law(table, np.flatnonzero(table.design.fitted).tolist())


def _everything(table: Table) -> tuple[Predict, Mixture]:
    return _law(table, range(len(table.design.points)))


def _interference(table: Table) -> tuple[Predict, Mixture]:
    return _law(table, np.flatnonzero(table.design.fitted).tolist(), gamma=True)


def _probes(table: Table) -> tuple[Predict, Mixture]:
    """Only really trained probes and the joint probe's slopes."""
    return _law(table, range(len(table.design.probes.probes)), [0])


def _probe_slopes(table: Table) -> tuple[Predict, Mixture]:
    """Really trained probes, each with slopes."""
    n = len(table.design.probes.probes)
    return _law(table, range(n), range(n))


def _with_slopes(count: int, gamma: bool = False) -> Callable[[Table], tuple[Predict, Mixture]]:
    def response(table: Table) -> tuple[Predict, Mixture]:
        points = _inner(table, count)
        return _law(table, points, points, gamma=gamma)

    return response


RESPONSES: dict[str, Callable[[Table], tuple[Predict, Mixture]]] = {
    "default": _published,
    "all points": _everything,
    "interference": _interference,
    "first order at joint": _linear,
    "slopes at 4": _with_slopes(4),
    "slopes at 4, gamma": _with_slopes(4, True),
    "probes + joint slopes": _probes,
    "probes with slopes": _probe_slopes,
}
