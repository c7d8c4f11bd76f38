"""What to train probes on and which interpolations to look at.

The published design rests on "the loss depends on the mixture alone", which averaged adapters break: proxies made
of several specialised probes can be worse than one probe trained jointly on the same mixture. So every design
here contains *twins*: different interpolation weights that stand for the same mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.problem import Coordinates

OLD = "old"
JOINT = "joint"


@dataclass(frozen=True)
class StageDesign:
    """Probes of a stage, the coordinates they can tell apart, and the points to evaluate."""

    probes: ProbeDesign
    coordinates: Coordinates
    points: tuple[InterpolationWeights, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    twins: tuple[tuple[int, int], ...]
    """Pairs of points with different weights and the same mixture: (jointly trained, averaged)."""
    fitted: tuple[bool, ...]
    """Which points the law is fitted to. On a line all; otherwise the specialised probes themselves are left out: a domain's
    loss against its own share is far steeper at 0.02 than any log-linear law fitted to the interior, and nine tenths of one domain
    is no mixture anybody trains on (docs/experiments.md, 2026-11-24: left-one-out error 0.007 without them, 0.054 with)."""

    @property
    def mixtures(self) -> FloatArray:
        """`p = R^T w` of every point, (M, D)."""
        return np.array([self.probes.mixture_of(w).weights for w in self.points])


def coordinates_of(domains: Sequence[str], old: Mixture | None, new: Sequence[str] | None = None) -> Coordinates:
    """Directions a stage can vary.

    All domains already in the old mixture (or none known): every domain is free (pretraining, rebalancing). Otherwise
    `old` is one coordinate with its inner proportions kept, and each new domain is one.

    Args:
        domains: D names.
        old: Mixture the model was last trained on; None: uniform.
        new: Domains with a coordinate of their own, in the old mixture or not; None: those not in the old mixture.
    """
    new = new_domains(domains, old) if new is None else new
    if old is None or not new:
        return Coordinates.identity(domains)
    if OLD in domains:
        raise ConfigError(f"domain name {OLD!r} is taken by the old mixture as a coordinate; rename the domain")
    rows = [old.on(domains).weights, *(np.eye(len(domains))[list(domains).index(d)] for d in new)]
    return Coordinates((OLD, *new), tuple(domains), np.array(rows))


def new_domains(domains: Sequence[str], old: Mixture | None) -> tuple[str, ...]:
    """Domains the current model has not been trained on."""
    return tuple(d for d in domains if old is None or old.get(d, 0.0) == 0)


def design_stage(
    domains: Sequence[str],
    old: Mixture | None,
    *,
    share: float = 0.9,
    joint: bool = True,
    num_points: int | None = None,
    seed: int = 0,
    new: Sequence[str] | None = None,
    interpolate: bool = True,
) -> StageDesign:
    r"""Probes and points of one stage (method.md section 3, steps 1 and 2).

    Continual stage: an `old` probe on `share` old + rest new, one probe per new domain d on `share` d + rest old, and
    (unless `joint` is off) a `joint` probe on the centre of these. Rebalancing: an `old` probe on the old mixture m and one per domain on
    `share` d + rest m; averaging those with weights m gives m again, so `old` is the joint probe.

    Args:
        domains: D names.
        old: Mixture the model was last trained on; None: uniform.
        share: Of a probe's own data, in (0.5, 1]; in rebalancing, where the rest is the old mixture, in (0, 1].
        joint: Train the joint probe in continual stages (one probe more than the paper's).
        num_points: Interpolated points besides the probes themselves; None: 9 on a line, else 2 P + 6.
        seed: Of the Dirichlet points.
        new: Domains with a coordinate of their own; None: those not in the old mixture.
        interpolate: Whether points between the probes are evaluated; else the law is fitted to the probes themselves.

    Raises:
        ConfigError: Fewer than two domains, or a share outside (0.5, 1].
    """
    if len(domains) < 2:
        raise ConfigError(f"domains: {list(domains)}; a mixture needs at least two")
    coordinates = coordinates_of(domains, old, new)
    collapsed = coordinates.names != coordinates.domains
    lowest = 0.5 if collapsed else 0.0
    if not lowest < share <= 1:
        raise ConfigError(f"probes.share: {share}; expected a number in ({lowest:g}, 1]")
    m = (old or Mixture.uniform(domains)).on(domains).weights
    if collapsed:
        probes, twin = _continual(coordinates, m, share, joint=joint)
    else:  # the probe on the mixture in use is the joint one
        R = np.array([m, *(share * e + (1 - share) * m for e in np.eye(len(domains)))])
        probes, twin, joint = ProbeDesign((OLD, *domains), tuple(domains), R), np.append(0.0, m), True
    count = len(probes.probes)
    alone, labels = list(np.eye(count)), [f"probe {p}" for p in probes.probes]
    if not interpolate:
        return _stage_design(probes, coordinates, alone, labels, (), [True] * count)
    inner = _interpolations(count, coordinates, joint=joint, num_points=num_points, seed=seed)
    centre = (count - 1 if joint else -1) if collapsed else 0
    line = collapsed and len(coordinates.names) == 2
    points = [*alone, *([twin] if joint else []), *inner]
    labels += [*(["twin"] if joint else []), *(f"proxy {i + 1}" for i in range(len(inner)))]
    fitted = [line or index >= count or index == centre for index in range(len(points))]
    needed = len(coordinates.names) + 2
    if sum(fitted) < needed:
        raise ConfigError(
            f"proxies.count: {num_points} leaves {sum(fitted)} points for laws over {len(coordinates.names)} "
            f"coordinates; expected at least {needed} points in all"
        )
    return _stage_design(probes, coordinates, points, labels, ((centre, count),) if joint else (), fitted)


def _continual(coordinates: Coordinates, m: FloatArray, share: float, *, joint: bool) -> tuple[ProbeDesign, FloatArray]:
    """Probes of a stage with new domains, and the weights (P,) that average to the joint one's mixture."""
    added = coordinates.E[1:]
    R = np.array([share * m + (1 - share) * added.mean(axis=0), *(share * d + (1 - share) * m for d in added)])
    names, even = coordinates.names, np.full(len(R), 1 / len(R))
    if not joint:
        return ProbeDesign(names, coordinates.domains, R), even
    return ProbeDesign((*names, JOINT), coordinates.domains, np.vstack([R, R.mean(axis=0)])), np.append(even, 0.0)


def _stage_design(
    probes: ProbeDesign,
    coordinates: Coordinates,
    points: Sequence[FloatArray],
    names: Sequence[str],
    twins: tuple[tuple[int, int], ...],
    fitted: Sequence[bool],
) -> StageDesign:
    """With every point of weights (P,) as what it is; those beyond the probes themselves are proxies."""
    count = len(probes.probes)
    return StageDesign(
        probes=probes,
        coordinates=coordinates,
        points=tuple(InterpolationWeights(probes.probes, w) for w in points),
        names=tuple(names),
        kinds=tuple("probe" if index < count else "proxy" for index in range(len(points))),
        twins=twins,
        fitted=tuple(fitted),
    )


def default_points(num_probes: int, coordinates: Coordinates) -> int:
    """Interpolated points where none are asked for: 9 on a line, else 2 P + 6."""
    line = coordinates.names != coordinates.domains and len(coordinates.names) == 2
    return 9 if line else 2 * num_probes + 6


def _interpolations(
    num_probes: int, coordinates: Coordinates, *, joint: bool, num_points: int | None, seed: int
) -> list[FloatArray]:
    """Interior points: a grid on the line for two specialists, Dirichlet(1) points otherwise."""
    collapsed = coordinates.names != coordinates.domains
    count = num_points or default_points(num_probes, coordinates)
    if collapsed and len(coordinates.names) == 2:
        inner = []
        grid = np.linspace(0, 1, count + 2)[1:-1]
        for position, a in enumerate(grid):
            if not joint:
                inner.append(np.array([1 - a, a]))
                continue
            # Half of the points lean on the joint probe, half do without: that separates the mixture from the averaging.
            lean = (1 - abs(2 * a - 1)) * (position % 2 == 0)
            rest = np.maximum(np.array([1 - a, a]) - 0.5 * lean, 0.0)  # rounding may leave -3e-17
            point = np.append(rest, lean)
            if abs(a - 0.5) > 1e-9:
                inner.append(point)
        return inner
    rng = np.random.default_rng(seed)
    return list(rng.dirichlet(np.ones(num_probes), size=count))


def interference(weights: FloatArray, gram: FloatArray) -> FloatArray:
    r"""Spread of the mixed delta weights, `sum_k w_k |dW_k|^2 - |sum_k w_k dW_k|^2`, (M,).

    Zero at a single probe, positive where adapters that point different ways are averaged: the second-order cost of
    interpolating instead of training jointly.

    Args:
        weights: Interpolation weights, (M, P).
        gram: Inner products of the delta weights, (P, P).
    """
    weights = np.atleast_2d(weights)
    spread: FloatArray = weights @ np.diag(gram) - np.einsum("mp,pq,mq->m", weights, gram, weights)
    return np.maximum(spread, 0.0)
