"""From slopes by interpolation weights to slopes by mixture: the chain rule through `p = R^T w`, with the interference that averaging adds.

A proxy's loss is `law(R^T w) + gamma V(w)`. Weights stay on the simplex, so only slopes *towards* a probe say something of mixtures:
along `e_k - w` the mixture moves along `R_k - p`, and `V` by a known amount. A point gives P such slopes, one of them redundant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray

_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class SlopeTable:
    """J directional derivatives of E losses. D domains."""

    mixtures: FloatArray  # (J, D) where
    directions: FloatArray  # (J, D) along what change of mixture, adding up to zero
    losses: FloatArray  # (J, E) nats per token
    interference: FloatArray  # (J,) change of V
    points: npt.NDArray[np.intp]  # (J,) the table's point that the same pass evaluated
    scale: float = 1.0
    """What one nat of slope is worth in nats of value: the values' noise over the slopes'."""

    def __len__(self) -> int:
        return len(self.losses)


def towards_probes(weights: FloatArray, slopes: FloatArray) -> FloatArray:
    """Derivatives along `e_k - w` from those by each weight: `g_k - w . g`, any leading shape, (..., P)."""
    along: FloatArray = slopes - (slopes @ weights)[..., None]
    return along


def slope_table(
    weights: FloatArray,
    points: Sequence[int],
    sums: Sequence[FloatArray],
    tokens: Sequence[FloatArray],
    *,
    R: FloatArray,
    gram: FloatArray,
    value_noise: float,
) -> tuple[SlopeTable, tuple[FloatArray, ...]]:
    """Slopes towards every probe at G points, and their sums by sequence.

    Args:
        weights: Interpolation weights, (G, P).
        points: Which point of the proxy table each is, (G,).
        sums: Per evaluation set, `d nll / d w` of each sequence at each point, (G, S_e, P).
        tokens: Per evaluation set, (S_e,).
        R: Probe design, (P, D).
        gram: Inner products of the delta weights, (P, P).
        value_noise: Standard error of a difference between two points' losses, nats; sets the scale.

    Returns:
        The table, and per evaluation set the sums along each direction, (J, S_e), as `posterior.resampling_noise` takes them.
    """
    where, along, change, owner, directions = [], [], [], [], []
    per_set: list[list[FloatArray]] = [[] for _ in tokens]
    for g, w in enumerate(weights):
        p = R.T @ w
        pull = towards_probes(w, np.diag(gram) - 2 * gram @ w)
        moved = [towards_probes(w, of_set[g]) for of_set in sums]
        for k in range(len(R)):
            if np.abs(R[k] - p).max() < _TINY:
                continue
            where.append(p)
            directions.append(R[k] - p)
            change.append(pull[k])
            owner.append(points[g])
            along.append([m[:, k].sum() / t.sum() for m, t in zip(moved, tokens, strict=True)])
            for rows, m in zip(per_set, moved, strict=True):
                rows.append(m[:, k])
    stacked = tuple(np.array(rows) for rows in per_set)
    table = SlopeTable(
        mixtures=np.array(where),
        directions=np.array(directions),
        losses=np.array(along),
        interference=np.array(change),
        points=np.array(owner, dtype=np.intp),
        scale=value_noise / max(_slope_noise(stacked, tokens), _TINY),
    )
    return table, stacked


def corrected_slopes(
    pairs: Sequence[tuple[int, int]],
    nll: Sequence[FloatArray],
    sums: Sequence[FloatArray],
    tokens: Sequence[FloatArray],
    *,
    R: FloatArray,
    value_noise: float,
) -> tuple[SlopeTable, tuple[FloatArray, ...]]:
    r"""What *training* would show between two trained probes, from what interpolation shows: `2 slope - chord`.

    The line between two trained probes is right at both ends, and to second order in their deltas has half of the curvature that
    training on the mixtures between has, because it averages the paths' own slowing down (docs/theory.md). A curve through both ends with
    twice the line's curvature has this slope at its start. No interference remains to be explained.

    Args:
        pairs: (at, towards) probes, J of them.
        nll: Per evaluation set, summed nats of each sequence at each probe, (P, S_e).
        sums: Per evaluation set, `d nll / d w` of each sequence at each probe, (P, S_e, P).
        tokens: Per evaluation set, (S_e,).
        R: Probe design, (P, D).
        value_noise: Standard error of a difference between two points' losses, nats; sets the scale.

    Returns:
        As `slope_table`; `points` counts probes.
    """
    at, towards = (np.array(side, dtype=np.intp) for side in zip(*pairs, strict=True))
    stacked = tuple(
        2 * (s[at, :, towards] - s[at, :, at]) - (n[towards] - n[at]) for s, n in zip(sums, nll, strict=True)
    )
    table = SlopeTable(
        mixtures=R[at],
        directions=R[towards] - R[at],
        losses=np.stack([rows.sum(axis=1) / t.sum() for rows, t in zip(stacked, tokens, strict=True)], axis=1),
        interference=np.zeros(len(at)),
        points=at,
        scale=value_noise / max(_slope_noise(stacked, tokens), _TINY),
    )
    return table, stacked


def _slope_noise(stacked: Sequence[FloatArray], tokens: Sequence[FloatArray]) -> float:
    """Root mean square standard error of the slopes over held-out sequences, nats."""
    errors = [((rows / t).std(axis=1, ddof=1) / np.sqrt(len(t))) for rows, t in _scored(stacked, tokens)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) if errors else float("inf")


def value_noise(nll: Sequence[FloatArray], tokens: Sequence[FloatArray]) -> float:
    """Root mean square standard error of a point's loss against the mean of all points, paired over sequences, nats.

    What all points share cancels where mixtures are compared, so it is left out. `nll`: per evaluation set, (M, S_e).
    """
    centred = [rows - rows.mean(axis=0) for rows in nll]
    return _slope_noise(centred, tokens)


def _scored(rows: Sequence[FloatArray], tokens: Sequence[FloatArray]) -> list[tuple[FloatArray, FloatArray]]:
    return [(r[:, t > 0], t[t > 0]) for r, t in zip(rows, tokens, strict=True) if np.sum(t > 0) > 1]
