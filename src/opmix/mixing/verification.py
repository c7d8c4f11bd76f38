"""Is the simulation true? Directly trained mixtures against their interpolations and against the law, and what the error can cost.

The decision compares mixtures, so an error that all share costs nothing: what counts is by how much the proposal was flattered more than
its rivals were. With `e(q) = direct(q) - law(q)` at measured mixtures q,

    regret(p) <= law(p) - min law + e(p) - min_q e(q)

as long as no mixture that was not measured is flattered less than all that were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.numerics import rank_correlation
from opmix.mixing.paired import objective_error, objective_values
from opmix.mixing.problem import SolveSettings

_SUM_WEIGHT = 1e4  # of the condition that weights add up to one, in the projection


def any_weights_for(design: ProbeDesign, mixture: FloatArray) -> InterpolationWeights:
    """Weights that stand for a mixture (D,), or for the nearest one that the probes can reach; any of several that do.

    Least squares on `R^T w = p` with `w` on the simplex.

    Examples:
        >>> design = ProbeDesign(("old", "new"), ("web", "math"), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> any_weights_for(design, np.array([0.5, 0.5]))
        InterpolationWeights(old=0.5, new=0.5)
    """
    return InterpolationWeights.normalised(dict(zip(design.probes, _projected(design, mixture), strict=True)))


def weights_for(design: ProbeDesign, mixture: FloatArray) -> InterpolationWeights:
    """Weights that stand for a mixture (D,), or for the nearest one that the probes can reach.

    Several may do; these lean on the probes whose own mixtures are nearest, so that as little as possible is averaged.
    """
    from scipy.optimize import linprog

    R, projected = design.R, _projected(design, mixture)
    reached = R.T @ projected / projected.sum()
    spread = np.sum((R - reached) ** 2, axis=1)
    equal = np.concatenate([R.T, np.ones((1, len(R)))])
    made = linprog(spread, A_eq=equal, b_eq=np.append(reached, 1.0), bounds=(0, 1), method="highs")
    found = np.maximum(projected if made.x is None else made.x, 0.0)
    return InterpolationWeights(design.probes, found / found.sum())


def _projected(design: ProbeDesign, mixture: FloatArray) -> FloatArray:
    """Weights (P,) that sum to one but for rounding."""
    from scipy.optimize import nnls

    rows = np.concatenate([design.R.T, np.full((1, len(design.R)), _SUM_WEIGHT)])
    return np.asarray(nnls(rows, np.append(mixture, _SUM_WEIGHT))[0])


@dataclass(frozen=True, kw_only=True)
class DirectPoint:
    """One mixture trained directly and simulated. Losses in nats per token, E evaluation sets."""

    name: str
    mixture: Mapping[str, float]
    reached: Mapping[str, float]
    """The mixture that the proxy stands for; another than `mixture` only outside what the probes span."""
    weights: Mapping[str, float]
    direct: FloatArray  # (E,)
    proxy: FloatArray  # (E,)
    law: FloatArray  # (E,)
    error: FloatArray  # (E,) standard error of direct - proxy, paired over held-out sequences
    kl: FloatArray  # (E,) KL(direct || proxy) of the predictions

    def json(self, metrics: Sequence[str]) -> dict[str, Any]:
        """For `verification.json`."""

        def named(values: FloatArray) -> dict[str, float]:
            return dict(zip(metrics, map(float, values), strict=True))

        return {
            "name": self.name,
            "mixture": dict(self.mixture),
            "reached": dict(self.reached),
            "weights": dict(self.weights),
            "direct": named(self.direct),
            "proxy": named(self.proxy),
            "law": named(self.law),
            "difference": named(self.direct - self.proxy),
            "standard_error": named(self.error),
            "kl": named(self.kl),
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Every mixture with an adapter of its own: direct and law objective, nats. The first is the proposal."""

    names: tuple[str, ...]
    direct: FloatArray  # (Q,)
    law: FloatArray  # (Q,)
    errors: FloatArray  # (Q,) standard error of the difference to the proposal, paired
    law_gap: float
    """Law objective at the proposal minus the law's minimum under the constraints."""

    @property
    def flattery(self) -> FloatArray:
        """Direct minus law, (Q,)."""
        return self.direct - self.law

    @property
    def regret(self) -> float:
        """Of the proposal among the measured mixtures."""
        return float(self.direct[0] - self.direct.min())

    @property
    def best(self) -> int:
        """Which measured mixture is best."""
        return int(self.direct.argmin())

    @property
    def regret_bound(self) -> float:
        """See the module."""
        flattery = self.flattery
        return max(self.regret, float(self.law_gap + flattery[0] - flattery.min()))

    @property
    def rank_agreement(self) -> float | None:
        """Spearman of law and direct objective; None below three mixtures."""
        return rank_correlation(self.law, self.direct) if len(self.direct) > 2 else None

    def gain(self, reference: str) -> tuple[float, float, float] | None:
        """Gain of the proposal over a measured mixture: by the law, measured, and the measured one's standard error."""
        if reference not in self.names:
            return None
        at = self.names.index(reference)
        return float(self.law[at] - self.law[0]), float(self.direct[at] - self.direct[0]), float(self.errors[at])


def curvature(weights: FloatArray, losses: FloatArray, probes: FloatArray) -> FloatArray:
    """How far proxies lie below the chord of their probes, `sum_k w_k f(e_k) - f(w)`, (M, E).

    The second-order part of the simulation that a run measures for nothing: half the curvature that training itself would show, as long
    as probes are short (docs/theory.md).

    Args:
        weights: (M, P).
        losses: At the weights, (M, E).
        probes: At each probe alone, (P, E).
    """
    return np.atleast_2d(weights) @ probes - np.atleast_2d(losses)


def sentences(
    proposal: DirectPoint, measured: Measured, settings: SolveSettings, *, reference: str, tolerance: float
) -> tuple[str, ...]:
    """What was found, in words."""
    off = objective_values(np.stack([proposal.direct, proposal.proxy, proposal.law]), settings)
    error = objective_error(proposal.error, settings)
    said = [
        f"At the proposal the adapter trained on it is {off[0] - off[1]:+.4f} +- {error:.4f} nats from the "
        "interpolated proxy and "
        f"{off[0] - off[2]:+.4f} from the law; KL of their predictions {proposal.kl.mean():.4f} nats per token."
    ]
    if (gain := measured.gain(reference)) is not None:
        said.append(f"Gain over {reference}: {gain[0]:+.4f} by the law, {gain[1]:+.4f} +- {gain[2]:.4f} measured.")
    if (rank := measured.rank_agreement) is not None:
        said.append(
            f"Over {len(measured.names)} directly trained mixtures law and measurement rank alike by {rank:+.2f} "
            "(Spearman)."
        )
    if measured.best and measured.regret > 2 * measured.errors[measured.best]:
        said.append(f"{measured.names[measured.best]} measured {measured.regret:.4f} nats better than the proposal.")
    bound, level = measured.regret_bound, float(objective_values(proposal.direct, settings))
    verdict = (
        f"The simulation's error can cost the decision at most {bound:.4f} nats ({bound / abs(level):.2%})"
        if level
        else f"The simulation's error can cost the decision at most {bound:.4f} nats"
    )
    inside = (
        f"within the {tolerance:.4f} it already counts as noise."
        if bound <= tolerance
        else (f"more than the {tolerance:.4f} it counts as noise: it matters; refine, or keep what you have.")
    )
    return (*said, f"{verdict}, {inside}")


def extend(probes: ProbeDesign, names: Sequence[str], mixtures: Sequence[Mixture]) -> ProbeDesign:
    """The design with further probes after its own."""
    rows = np.array([m.on(probes.domains).weights for m in mixtures])
    return ProbeDesign((*probes.probes, *names), probes.domains, np.concatenate([probes.R, rows]))


def padded(weights: InterpolationWeights, extended: ProbeDesign) -> InterpolationWeights:
    """The same weights over a design with more probes after the first ones."""
    more = np.zeros(len(extended.probes) - len(weights.weights))
    return InterpolationWeights(extended.probes, np.append(weights.weights, more))
