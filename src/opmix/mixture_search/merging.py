"""Merging instead of training: the adapters of a search, added to the model where they stand for a mixture (paper, figure 10)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from opmix.mixing.mixture import InterpolationWeights, Mixture, ProbeDesign
from opmix.mixture_search.context import SearchContext
from opmix.models.load import base_parameters


def weights_for(design: ProbeDesign, mixture: Mixture) -> InterpolationWeights:
    """Interpolation weights that stand for a mixture, or for the nearest one that any stand for.

    Least squares on `R^T w = p` with `w` on the simplex; where probes are more than domains the flattest of the exact solutions is
    not sought: any stands for the same mixture.

    Examples:
        >>> design = ProbeDesign(("old", "new"), ("web", "math"), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> weights_for(design, Mixture.of({"web": 0.5, "math": 0.5}))
        InterpolationWeights(old=0.5, new=0.5)
    """
    wanted = mixture.on(design.domains).weights
    strong = 1e4  # the row that keeps the weights' sum at one outweighs the fit
    rows = np.vstack([design.R.T, np.full(len(design.probes), strong)])
    found, _ = nnls(rows, np.append(wanted, strong))
    return InterpolationWeights.normalised(dict(zip(design.probes, found, strict=True)))


def merged_model(context: SearchContext, mixture: Mixture) -> tuple[Any, InterpolationWeights]:
    """The current model with the probes' delta weights added at `mixture`; probes are found in the run folder, or trained.

    Raises:
        TrainingError: A probe diverged.
    """
    design = context.method.design(context.stage).probes
    weights = weights_for(design, mixture)
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
