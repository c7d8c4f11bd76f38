"""Trying a run's arguments leaves no trace in a process in which somebody trains."""

import random

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState

from opmix.training.arguments import try_arguments


def test_trying_arguments_leaves_generators_and_accelerate_as_they_were():
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002  (the one that the Trainer seeds)
    GradientState()._shared_state["num_steps"] = 3  # somebody's Trainer is in the middle of its accumulation

    def state():
        shared = [dict(kind._shared_state) for kind in (AcceleratorState, GradientState)]
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), shared  # noqa: NPY002

    before = state()
    try:
        try_arguments({"learning_rate": 1e-3, "per_device_train_batch_size": 2})
        assert state() == before
    finally:
        GradientState._shared_state.clear()
