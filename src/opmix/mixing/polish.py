"""The last digits of an optimum: Newton's steps on the face of the feasible set that an interior-point method ended on.

Such a method stops where the objective changes no more. A Frank-Wolfe gap is of first order in what is left where the objective is of
second: the same answer, in the objective's ninth digit, may carry a gap that no certificate accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from opmix.mixing.mixture import FloatArray

_NOTHING = 1e-7
"""Shares below are at zero, as far as the face is concerned."""
_MOST = 64
"""Directions of a face that are worth a Hessian by differences."""


def polished(x: FloatArray, slope: Callable[[FloatArray], FloatArray], normals: FloatArray) -> Iterator[FloatArray]:
    """Points after one, two, ... of Newton's steps; ends where there is nowhere to go.

    Args:
        x: Coordinates (C,) on the simplex.
        slope: Gradient of the objective, (C,) to (C,).
        normals: (K, C), of the constraints that hold with equality at x.
    """
    while (step := _step(x, slope, normals)) is not None:
        x = np.maximum(x + step, 0)
        x = x / x.sum()
        yield x


def _step(x: FloatArray, slope: Callable[[FloatArray], FloatArray], normals: FloatArray) -> FloatArray | None:
    free = x > _NOTHING
    face = _null_space(np.vstack([np.ones((1, int(free.sum()))), normals[:, free]]))
    if not 0 < face.shape[1] <= _MOST:
        return None
    here = slope(x)[free]
    hessian = np.empty((face.shape[1], face.shape[1]))
    for k, direction in enumerate(face.T):
        # A thousandth of every share, at most: the curvature of `p log p` is 1 / p.
        reach = 1e-3 * float(np.min(x[free] / np.maximum(np.abs(direction), 1e-300)))
        ahead, behind = x.copy(), x.copy()
        ahead[free] += reach * direction
        behind[free] -= reach * direction
        hessian[k] = face.T @ ((slope(ahead) - slope(behind))[free] / (2 * reach))
    hessian = (hessian + hessian.T) / 2
    if not np.all(np.isfinite(hessian)) or np.linalg.eigvalsh(hessian)[0] <= 0:
        return None
    move = face @ -np.linalg.solve(hessian, face.T @ here)
    shrinks = move < 0
    longest = float(np.min(x[free][shrinks] / -move[shrinks])) if shrinks.any() else np.inf
    step = np.zeros(len(x))
    step[free] = min(1.0, 0.5 * longest) * move
    return step


def _null_space(rows: FloatArray) -> FloatArray:
    _, sizes, directions = np.linalg.svd(rows)
    rank = int(np.sum(sizes > 1e-10 * sizes[0]))
    return np.asarray(directions[rank:].T)
