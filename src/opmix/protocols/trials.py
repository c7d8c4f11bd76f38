"""What baselines ask for beside simulation: models really trained on mixtures, and their averages.

Losses are held-out (`valid`), in nats per token; every call is charged to the method that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.mixing_method import MethodContext

Start = Literal["current", "scratch"]
"""`current`: the model as it is now; `scratch`: a new, usually smaller, model that has learned nothing."""


@dataclass(frozen=True, kw_only=True)
class TrialModel:
    """The model that proxy runs train, and how far."""

    tokens: int
    """Of each run."""
    start: Start = "current"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """With `scratch`: settings of the stage's architecture to change, such as `{"hidden_size": 64}`."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Held-out losses of N models that were really trained (or averaged)."""

    metrics: tuple[str, ...]
    """E evaluation sets: the stage's domains, in its order."""
    mixtures: tuple[Mixture, ...]
    """What each was trained on, over the stage's domains."""
    losses: FloatArray  # (N, E) nats per token
    standard_errors: FloatArray  # (N, E) over held-out sequences
    baseline: FloatArray  # (E,) the model they started from

    @property
    def shares(self) -> FloatArray:
        """Mixtures as rows, (N, D)."""
        return np.array([m.weights for m in self.mixtures])


class TrialRunner(MethodContext, Protocol):
    """Trains models on given mixtures for a method of the comparison."""

    @property
    def tokens_per_step(self) -> float:
        """Supervised tokens of one optimizer step; proxy runs are whole steps, at least one."""

    def train(self, mixtures: Sequence[Mixture], proxy: TrialModel, *, label: str) -> Trials:
        """Train a copy of the proxy model on each mixture: the same start, data order rule and number of tokens for all.

        `label` names the work in the run folder; calls with another label or other inputs are other work.
        """

    def average(self, mixtures: Sequence[Mixture], weights: FloatArray, proxy: TrialModel, *, label: str) -> Trials:
        """As `train`, then evaluate weight averages of the trained models.

        Args:
            mixtures: K mixtures, a model each, from one start.
            weights: (N, K) rows on the simplex over the models: `W = sum_k weights[n, k] W_k`, all parameters.
            proxy: What is trained.
            label: See `train`.

        Returns:
            N rows; `mixtures` of the result are `weights @ R`, R the given ones as rows.
        """
