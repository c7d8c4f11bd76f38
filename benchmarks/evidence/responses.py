"""Responses: from one table of simulated models to the predicted gain over uniform of any mixture, and an optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

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


def law_of(table: Table, values: Sequence[int], slopes: SlopeTable | None, *, gamma: bool = False) -> LawFit:
    """The law through some points' values, and slopes."""
    values = list(values)
    return fit_law(
        table.design.mixtures[values], table.made.losses[values], domains=table.design.probes.domains, metrics=table.made.metrics,
        interference=interference(table.weights[values], table.made.gram) if gamma else None, slopes=slopes,
    )  # fmt: skip


def fitted_law(table: Table, values: Sequence[int], steep: Sequence[int] = (), *, gamma: bool = False) -> LawFit:
    """The law through some points, those in `steep` with slopes."""
    slopes = table.slopes(steep, [list(values).index(s) for s in steep]) if len(steep) else None
    return law_of(table, values, slopes, gamma=gamma)


def optimum_of(fit: LawFit, table: Table) -> Mixture:
    """Under the default KL towards uniform."""
    settings = SolveSettings(kl=KL, prior=Mixture.uniform(table.design.probes.domains))
    return solve(fit.law, coordinates=table.design.coordinates, settings=settings).mixture


def _response(fit: LawFit, table: Table) -> tuple[Predict, Mixture]:
    base = fit.law.predict(Mixture.uniform(table.design.probes.domains).weights).mean()
    return lambda p: float(base - fit.law.predict(p).mean()), optimum_of(fit, table)


def _law(
    table: Table, values: Sequence[int], steep: Sequence[int] = (), *, gamma: bool = False
) -> tuple[Predict, Mixture]:
    return _response(fitted_law(table, values, steep, gamma=gamma), table)


def _linear(table: Table, point: int = 0) -> tuple[Predict, Mixture]:
    """First order at the jointly trained probe, with KL as the only curvature."""
    slopes = table.slopes([point], [0])
    gradient = np.linalg.lstsq(slopes.directions, slopes.losses.mean(axis=1), rcond=None)[0]
    uniform = Mixture.uniform(table.design.probes.domains)
    tilted = uniform.weights * np.exp(-(gradient - gradient.mean()) / KL)
    return lambda p: float(-gradient @ (p - uniform.weights)), Mixture(uniform.names, tilted / tilted.sum())


def _corrected_linear(table: Table) -> tuple[Predict, Mixture]:
    """First order at the joint probe with corrected slopes, and the same correction's curvature left to KL."""
    n, losses = len(table.design.probes.probes), table.made.losses
    joint = table.slopes([0], [0])
    slopes = (2 * joint.losses - (losses[1:n] - losses[0])).mean(axis=1)
    gradient = np.linalg.lstsq(joint.directions, slopes, rcond=None)[0]
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


def _corrected(table: Table, *, ends: bool) -> tuple[Predict, Mixture]:
    """Really trained probes and, between joint and each, slopes corrected for the half of the curvature that interpolation loses.

    A line between two trained probes is right at both ends and has half the true curvature, so `2 slope - chord` is the true slope there.
    """
    n, losses = len(table.design.probes.probes), table.made.losses
    joint = table.slopes([0], [0])  # towards probes 1..n-1
    chords = losses[1:n] - losses[0]
    parts = [replace(joint, losses=2 * joint.losses - chords)]
    for k in range(1, n) if ends else ():
        back = table.slopes([k], [k])
        row = slice(0, 1)  # towards the joint probe
        parts.append(
            replace(
                back, mixtures=back.mixtures[row], directions=back.directions[row], interference=back.interference[row],
                points=back.points[row], losses=2 * back.losses[row] - (losses[0] - losses[k]),
            )
        )  # fmt: skip
    names = ("mixtures", "directions", "losses", "interference", "points")
    slopes = replace(joint, **{f: np.concatenate([getattr(p, f) for p in parts]) for f in names})
    return _response(law_of(table, range(n), slopes), table)


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
    "probes, corrected": partial(_corrected, ends=False),
    "probes, corrected, ends": partial(_corrected, ends=True),
    "corrected first order": _corrected_linear,
}
