"""The nearest gradient that no reference gradient objects to: the quadratic program of GEM, of which A-GEM's projection is one row.

With g the gradient and G (K, P) the reference gradients as rows, the nearest z to g with G z >= 0 is z = g + G' v, where v solves the
dual `min_{v >= 0} 1/2 v' G G' v + (G g)' v` (GEM, arXiv 1706.08840, equation 11): non-negative least squares in K unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from opmix.continual.memory import Gradients
from opmix.mixing.mixture import FloatArray

_RANK = 1e-10
"""Directions that hold a smaller share of the scaled references' inner products are rounding."""


def dual(gram: FloatArray, products: FloatArray) -> FloatArray:
    """What to add of each reference gradient, (K,), none negative.

    Args:
        gram: (K, K), `G G'`.
        products: (K,), `G g`.

    Examples:
        >>> dual(np.array([[4.0]]), np.array([-2.0])).tolist(), dual(np.array([[4.0]]), np.array([2.0])).tolist()
        ([0.5], [0.0])
    """
    norms = np.sqrt(np.diag(gram))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = gram * np.outer(inverse, inverse)  # rows of norm one: losses of any size are treated alike
    values, vectors = np.linalg.eigh(scaled)
    held = values > _RANK * max(values[-1], 1e-300)
    roots = np.sqrt(values[held])
    # |M u + c|^2 is the dual's quadratic form up to a constant, with M' M the scaled Gram matrix.
    found, _ = nnls(roots[:, None] * vectors[:, held].T, -(vectors[:, held].T @ (products * inverse)) / roots)
    return np.asarray(found * inverse)


def inner(one: Gradients, other: Gradients) -> torch.Tensor:
    """Inner product over all parameters, in float64 where the device has it."""
    exact = torch.float32 if one[0].device.type == "mps" else torch.float64
    return torch.stack([(a.to(exact) * b.to(exact)).sum() for a, b in zip(one, other, strict=True)]).sum()


def project(parameters: Sequence[nn.Parameter], references: Sequence[Gradients], margin: float = 0.0) -> bool:
    """Replace the gradients by the nearest ones that no reference objects to; where none does they stay bit for bit.

    Args:
        parameters: With gradients.
        references: K gradients of old data, each a tensor per parameter.
        margin: Added to what is taken of every reference (GEM's gamma), where there is an objection.

    Returns:
        Whether anything was changed. Gradients that are not finite stay too: the Trainer deals with them.
    """
    pairs = [(p, k) for k, p in enumerate(parameters) if p.grad is not None]
    gradient = [p.grad for p, _ in pairs if p.grad is not None]
    rows = [[reference[k] for _, k in pairs] for reference in references]
    products = torch.stack([inner(row, gradient) for row in rows])
    gram = torch.stack([torch.stack([inner(a, b) for b in rows]) for a in rows])
    numbers = np.array(torch.cat([products[None], gram]).tolist())
    if not np.isfinite(numbers).all() or (numbers[0] >= 0).all():
        return False
    weights = dual(numbers[1:], numbers[0]) + margin
    for weight, row in zip(weights, rows, strict=True):
        for into, reference in zip(gradient, row, strict=True):
            into.add_(reference, alpha=float(weight))
    return True
