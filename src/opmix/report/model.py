"""The fitted laws as arrays: predictions, intervals from posterior draws, positions among coordinates.

Shapes as everywhere: D domains, E evaluation sets, K coordinates, M mixtures, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from opmix.errors import StoreError
from opmix.mixing.log_linear import LogLinearLaw
from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import quantiles
from opmix.protocols.law import LawDraws, MixingLaw
from opmix.report.document import ReportData
from opmix.report.laws import at_probes, by_domain, known, read_draws, read_law
from opmix.results.mixture import MixtureFile

ON_COORDINATES = 1e-4
"""A mixture counts as reachable when its largest share error on the coordinates is below this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Laws over the domains of a report."""

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    law: MixingLaw
    gamma: FloatArray  # (E,) nats per unit of interference
    coordinates: tuple[str, ...]
    A: FloatArray  # (K, D), rows on the simplex
    weights: FloatArray  # (E,), add up to one
    level: float
    draws: LawDraws | None = None
    points: Model | None = None
    """The laws at the points' own length, where that is not the stage's: nothing is interpolated, all points are probes."""

    @property
    def at_points(self) -> Model:
        """The laws that the simulated points can be held against."""
        return self.points or self

    @property
    def collapsed(self) -> bool:
        """Whether coordinates are fewer than domains: `old` stands for several."""
        return self.coordinates != self.domains

    def vector(self, shares: Mapping[str, float]) -> FloatArray:
        """Shares as a vector over `domains`, (D,)."""
        return np.array([shares.get(name, 0.0) for name in self.domains], dtype=np.float64)

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """Losses (M, E) at mixtures (M, D)."""
        return self.law.predict(mixtures)

    def band(self, mixtures: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """Lower and upper loss, (M, E) each, at the report's level; None without draws."""
        if self.draws is None:
            return None
        # One mixture at a time: 64 draws x 64 metrics x hundreds of mixtures would be large at once.
        bounds = np.stack([self.quantiles(self._drawn(p)) for p in np.atleast_2d(mixtures)])
        return bounds[:, 0], bounds[:, 1]

    def change(self, mixture: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Loss at `mixture` minus loss at `reference`, (E,), and its interval (2, E), paired over draws."""
        point = self.predict(mixture)[0] - self.predict(reference)[0]
        if self.draws is None:
            return point, None
        return point, self.quantiles(self._drawn(mixture) - self._drawn(reference))

    def change_band(self, mixtures: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """Loss at `reference` plus the interval of the change from it, (M, E) each; None without draws."""
        if self.draws is None:
            return None
        base, drawn = self.predict(reference)[0], self._drawn(reference)
        bounds = np.stack([base + self.quantiles(self._drawn(p) - drawn) for p in np.atleast_2d(mixtures)])
        return bounds[:, 0], bounds[:, 1]

    def mean_change(self, mixture: FloatArray, reference: FloatArray) -> tuple[float, tuple[float, float] | None]:
        """`change` averaged with the objective's weights."""
        point, _ = self.change(mixture, reference)
        if self.draws is None:
            return float(self.weights @ point), None
        low, high = self.quantiles((self._drawn(mixture) - self._drawn(reference)) @ self.weights)
        return float(self.weights @ point), (float(low), float(high))

    def _drawn(self, mixture: FloatArray) -> FloatArray:
        """Losses of every draw at one mixture, (B, E)."""
        assert self.draws is not None
        return self.draws.predict(mixture)[:, 0]

    def quantiles(self, values: FloatArray) -> FloatArray:
        """Lower and upper end of the report's interval over draws (the first axis)."""
        tail = (1 - self.level) / 2
        return quantiles(values, [tail, 1 - tail])

    def position(self, mixture: FloatArray) -> FloatArray | None:
        """Coordinates x >= 0, (K,), with A^T x = mixture; None where no such x exists."""
        if not np.isfinite(mixture).all() or mixture.sum() <= 0:
            return None
        if not self.collapsed:
            return mixture
        from scipy.optimize import nnls

        x, _ = nnls(np.vstack([self.A.T, np.ones(len(self.A))]), np.append(mixture, 1.0))
        if x.sum() <= 0 or np.abs(self.A.T @ x - mixture).max() > ON_COORDINATES:
            return None
        return np.asarray(x / x.sum())

    def profile(self, base: FloatArray, index: int, shares: FloatArray) -> FloatArray:
        """Mixtures (M, D) in which one coordinate has `shares` and the others keep their proportions.

        Args:
            base: Coordinates (K,) that say what the others' proportions are.
            index: The coordinate that is moved.
            shares: Its shares.
        """
        others = np.delete(base, index)
        inside = others / others.sum() if others.sum() > 1e-9 else np.full(len(others), 1 / max(len(others), 1))
        x = np.insert(np.outer(1 - shares, inside), index, shares, axis=1)
        return x @ self.A


def build_model(data: ReportData) -> Model | None:
    """The laws of a report; None where the document has none, or laws of a kind that the report does not know.

    Raises:
        StoreError: Laws or coordinates name domains inconsistently.
    """
    document = data.document
    if not known(document.laws):
        return None
    metrics = tuple(document.laws)
    domains = tuple(dict.fromkeys([*document.mixture, *(d for law in document.laws.values() for d in by_domain(law))]))
    law = read_law(document.laws, domains)
    if not np.isfinite([*document.mixture.values(), document.settings.kl]).all():
        raise StoreError("mixture.json: a share, a law or the KL weight is not finite; run the command again")
    coordinates, A = _coordinates(document, domains)
    chosen = document.settings.weights if document.settings.objective in ("weighted", "perplexity") else None
    weights = np.array([(chosen or {}).get(m, 0.0 if chosen else 1.0) for m in metrics])
    made = Model(
        domains=domains,
        metrics=metrics,
        law=law,
        gamma=np.array([entry.interference for entry in document.laws.values()]),
        coordinates=coordinates,
        A=A,
        weights=weights / weights.sum() if weights.sum() > 0 else np.full(len(metrics), 1 / len(metrics)),
        level=document.interval_level,
        draws=read_draws(data.draws, law),
    )
    if isinstance(law, LogLinearLaw):
        return made
    draws = None if made.draws is None else at_probes(made.draws, document)
    return replace(made, points=replace(made, law=at_probes(law, document), draws=draws))


def _coordinates(document: MixtureFile, domains: tuple[str, ...]) -> tuple[tuple[str, ...], FloatArray]:
    entry = document.coordinates
    if entry is None or not entry.names:
        return domains, np.eye(len(domains))
    lost = [name for name in entry.names if name not in entry.mixtures]
    unknown = sorted({d for m in entry.mixtures.values() for d in m} - set(domains))
    if lost or unknown:
        raise StoreError(
            f"mixture.json: coordinates {lost} have no mixture, or name unknown domains {unknown}; "
            "run the command again to rewrite it"
        )
    A = np.array([[entry.mixtures[name].get(d, 0.0) for d in domains] for name in entry.names])
    if np.any(A.sum(axis=1) <= 0):
        raise StoreError("mixture.json: a coordinate's mixture has no positive share; run the command again")
    return entry.names, A / A.sum(axis=1, keepdims=True)
