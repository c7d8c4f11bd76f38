"""Equality of two float computations of the same thing, bounded by how far rounding alone moves the result.

Another order of summation (a processor, a batch's shape, a thread more) gives the exact result for inputs that are moved by some
roundings (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1). So the unit is measured and not chosen: how far the
result moves when each weight of the model moves by one rounding, up or down at random. No processor enters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

ROUNDINGS = 20
"""Roundings of every input that two computations may lie apart: a sum of n = 100 terms (the widest product of a tiny model has 96)
makes about sqrt(n) = 10 of them, and there are two computations. Measured on AVX2: 1.3 at most."""


@contextmanager
def perturbed(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Every weight moved by one rounding, relative to itself; the old bits come back."""
    generator = torch.Generator().manual_seed(seed)
    weights = {id(p): p for p in model.parameters()}.values()  # tied ones once
    before = [p.detach().clone() for p in weights]
    try:
        with torch.no_grad():
            for p in weights:
                signs = torch.randint(0, 2, p.shape, generator=generator, dtype=p.dtype) * 2 - 1
                p.mul_(1 + signs * torch.finfo(p.dtype).eps)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(weights, before, strict=True):
                p.copy_(old)


def leaves(value: Any) -> list[np.ndarray]:
    """Numbers, arrays and tensors in any nesting of mappings and sequences, as float64 arrays."""
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, Sequence):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, torch.Tensor):
        value = value.detach().double().numpy()
    return [np.array(value, dtype=float)]


def rounding_noise(compute: Callable[[], Any], model: torch.nn.Module, *, draws: int = 3) -> list[float]:
    """How far each array of `compute()` moves, at its farthest element, when the weights of `model` move by one rounding.

    At least one rounding of its largest element, which the result itself has gone through.
    """
    exact = leaves(compute())
    moved = [[torch.finfo(torch.float32).eps * np.abs(a).max() for a in exact]]
    for seed in range(draws):
        with perturbed(model, seed):
            moved.append([np.abs(a - b).max() for a, b in zip(leaves(compute()), exact, strict=True)])
    return np.max(moved, axis=0).tolist()


def _within_least_noise(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays lie within the least that `rounding_noise` ever gives, so that it need not be measured."""
    least = ROUNDINGS * torch.finfo(torch.float32).eps * np.abs(expected).max(initial=0.0)
    return found.shape == expected.shape and bool((np.abs(found - expected) <= least).all())


def assert_same_up_to_rounding(found: Any, compute: Callable[[], Any], model: torch.nn.Module) -> None:
    """`found` is what `compute()` gives, but for the order in which numbers are summed.

    Args:
        found: The other computation's result: a number, array or tensor, or a mapping or sequence of them.
        compute: The same by a way that reads the weights of `model`, which are moved and put back.
        model: A float32 or float64 model.
    """
    found, expected = leaves(found), leaves(compute())
    if all(_within_least_noise(a, b) for a, b in zip(found, expected, strict=True)):
        return
    noise = rounding_noise(compute, model)
    for i, (a, b, unit) in enumerate(zip(found, expected, noise, strict=True)):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=ROUNDINGS * unit, err_msg=f"array {i}; one rounding is {unit:.3g}"
        )
