"""Merging instead of training: the adapters of a search, added to the model where they stand for a mixture (paper, figure 10)."""

from __future__ import annotations

import copy
from typing import Any

import torch

from opmix.mixing.mixture import InterpolationWeights, Mixture
from opmix.mixing.verification import any_weights_for
from opmix.mixture_search.context import SearchContext
from opmix.models.layers import base_parameters


def merged_model(context: SearchContext, mixture: Mixture) -> tuple[Any, InterpolationWeights]:
    """The current model with the probes' delta weights added at `mixture`; probes are found in the run folder, or trained.

    Raises:
        TrainingError: A probe diverged.
    """
    design = context.method.design(context.problem).probes
    weights = any_weights_for(design, mixture.on(design.domains).weights)
    plain = copy.deepcopy(context.session.runtime.model)
    with (
        context.session.proxies(design, backend="merge") as proxies,
        proxies.at_vector(weights.weights) as model,
        torch.no_grad(),
    ):
        values = dict(base_parameters(model))
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name])
    return plain, weights
