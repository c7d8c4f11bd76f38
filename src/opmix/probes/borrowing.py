"""Working on somebody's live model and leaving no trace: weights, gradients, modes, flags and every random generator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import PreTrainedModel


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """Give the model back as it came; a Trainer that is in the middle of its run does not notice.

    Inside, another Trainer may train adapters on it. What that would leave behind is put back: `requires_grad`, gradients, training
    mode, `use_cache`, the forward that accelerate wraps for mixed precision, the generators of Python, numpy and torch (all devices), and
    accelerate's process-wide state.
    """
    parameters = list(model.parameters())
    kept = [(p, p.requires_grad, p.grad) for p in parameters]
    modes = [(module, module.training) for module in model.modules()]
    cache, states = model.config.use_cache, [(shared, _copied(shared)) for shared in _process_wide()]
    forward = {name: model.__dict__[name] for name in ("forward", "_original_forward") if name in model.__dict__}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the legacy generator is what Trainer seeds
    for p in parameters:
        p.grad = None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for name in ("forward", "_original_forward"):
            model.__dict__.pop(name, None)
        model.__dict__.update(forward)
        model.config.use_cache = cache
        for module, training in modes:
            module.training = training
        for p, flag, gradient in kept:
            p.requires_grad_(flag)
            p.grad = gradient
        for shared, state in states:
            shared.clear()
            shared.update(state)


def _process_wide() -> list[dict[str, Any]]:
    return [GradientState._shared_state, AcceleratorState._shared_state]


def _copied(shared: dict[str, Any]) -> dict[str, Any]:
    """A copy in which lists and mappings, such as that of the active data loaders, are copies too."""
    return {key: copy(value) if isinstance(value, list | dict) else value for key, value in shared.items()}
