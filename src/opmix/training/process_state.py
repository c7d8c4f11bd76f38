"""What a Trainer changes in the whole process by being made: generators and accelerate's shared state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Put back the generators of Python, numpy and torch (all devices) and accelerate's process-wide state, also after an error."""
    restore = [restorer(holder) for holder in (GradientState._shared_state, AcceleratorState._shared_state)]
    # The legacy generator is what the Trainer seeds.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for put_back in restore:
            put_back()


def restorer(holder: dict[str, Any]) -> Callable[[], None]:
    """Remember a mapping and the containers in it; both are put back in place, since handles of hooks point at them."""
    containers = [(value, value.copy()) for value in holder.values() if isinstance(value, dict | list | set)]
    return partial(_put_back, holder, dict(holder), containers)


def _put_back(holder: dict[str, Any], values: dict[str, Any], containers: list[tuple[Any, Any]]) -> None:
    for container, content in containers:
        container.clear()
        container.extend(content) if isinstance(container, list) else container.update(content)
    holder.clear()
    holder.update(values)
