"""Optima of many log-linear laws at once where no constraint binds: Newton's method on the simplex, all draws in one batch.

The KL term's Hessian is diagonal and the laws add one of their number's rank, so a step costs what the smaller of the two is. A free
optimum that satisfies the constraints is the constrained one; the others are the conic solver's work.
"""

from __future__ import annotations

import numpy as np

from opmix.mixing.mixture import FloatArray

_ITERATIONS = 60
_DECREMENT = 1e-15
"""Squared Newton decrement, nats: twice what the objective is still off by."""
_TO_THE_EDGE = 0.99
_LARGEST = 50.0


def free_optima(t: FloatArray, omega: FloatArray, kl: float, prior: FloatArray, start: FloatArray) -> FloatArray:
    """Minimise `sum_e omega_e exp(t_e . p) + kl KL(p || prior)` over the simplex for every draw.

    Args:
        t: Exponents, (B, E, D).
        omega: Weights of the evaluation sets, (E,).
        kl: > 0, nats.
        prior: (D,), > 0.
        start: Shares to begin with, (D,).

    Returns:
        (B, D); NaN for the draws that did not converge.
    """
    p = np.tile(np.maximum(start, 1e-12), (len(t), 1))
    p /= p.sum(axis=1, keepdims=True)
    answer = np.full_like(p, np.nan)
    on = np.arange(len(t))
    for _ in range(_ITERATIONS):
        here, laws = p[on], t[on]
        growth = omega * np.exp(_exponents(laws, here))
        slope = np.einsum("be,bed->bd", growth, laws) + kl * (np.log(here / prior) + 1)
        root = np.sqrt(here / kl)
        S = np.sqrt(growth)[:, :, None] * laws * root[:, None, :]
        ends = np.stack([slope, np.ones_like(slope)], axis=2) * root[:, :, None]
        along = root[:, :, None] * _inverse(S, ends)  # H^-1 of the slope and of one
        level = along[:, :, 0].sum(axis=1) / along[:, :, 1].sum(axis=1)
        step = level[:, None] * along[:, :, 1] - along[:, :, 0]
        decrement = -np.einsum("bd,bd->b", slope, step)
        done = decrement <= _DECREMENT
        answer[on[done]] = here[done]
        on, here, step, decrement, laws = on[~done], here[~done], step[~done], decrement[~done], laws[~done]
        if not on.size:
            break
        p[on] = _moved(laws, omega, kl, prior, here, step, decrement)
    return answer


def _exponents(laws: FloatArray, p: FloatArray) -> FloatArray:
    exponents: FloatArray = np.minimum(np.einsum("bed,bd->be", laws, p), _LARGEST)
    return exponents


def _inverse(S: FloatArray, right: FloatArray) -> FloatArray:
    """`(I + S^T S)^-1 right` for batches of (E, D) and (D, 2), by the smaller of the two dimensions."""
    metrics, domains = S.shape[1:]
    turned = np.swapaxes(S, 1, 2)
    found: FloatArray
    if metrics < domains:
        found = right - turned @ np.linalg.solve(np.eye(metrics) + S @ turned, S @ right)
    else:
        found = np.asarray(np.linalg.solve(np.eye(domains) + turned @ S, right), dtype=np.float64)
    return found


def _moved(
    laws: FloatArray,
    omega: FloatArray,
    kl: float,
    prior: FloatArray,
    p: FloatArray,
    step: FloatArray,
    decrement: FloatArray,
) -> FloatArray:
    """Along the step, at most almost to the edge, as far as the objective falls as it should."""

    def value(p: FloatArray) -> FloatArray:
        return np.exp(_exponents(laws, p)) @ omega + kl * np.sum(p * np.log(p / prior), axis=1)

    room = np.where(step < 0, -p / np.minimum(step, -1e-300), np.inf).min(axis=1)
    length, before = np.minimum(1.0, _TO_THE_EDGE * room), value(p)
    for _ in range(30):
        trial = p + length[:, None] * step
        trial /= trial.sum(axis=1, keepdims=True)
        short = value(trial) > before - 1e-4 * length * decrement + 1e-15 * np.abs(before)
        if not short.any():
            break
        length = np.where(short, length / 2, length)
    return trial
