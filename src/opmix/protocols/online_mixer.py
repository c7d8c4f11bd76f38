"""Methods that decide while a model trains: an explicit state, told what was observed, says what to train on next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.trials import TrialModel, TrialRunner

Signal = Literal["train_loss", "held_out", "gradients", "excess"]
"""What a mixer must be told, beside steps and tokens. `train_loss` is free; the others cost passes, which are charged."""

SERVING: frozenset[Signal] = frozenset({"held_out", "gradients"})
"""Signals of what a mixer serves: the domains' own held-out sets, or the targets."""

State = Mapping[str, Any]
"""JSON-like (arrays as lists): kept with every checkpoint, so that a killed run goes on just so."""


@dataclass(frozen=True)
class MixerSegment:
    """A mixture to train on, and for how long."""

    mixture: Mixture
    steps: int
    """Optimizer steps until the next decision; the last segment of a run is cut where the run ends."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What happened in the segment that just ended. D domains, in the stage's order."""

    step: int
    """Optimizer steps done in this run."""
    total_steps: int
    """Of the whole run."""
    mixture: Mixture
    """The segment was trained on it."""
    tokens: FloatArray  # (D,) supervised tokens trained on so far in this run
    learning_rate: float
    """At the end of the segment, as a share of the highest."""
    train_loss: FloatArray | None = None
    """(D,) mean training loss in the segment, nats per token; NaN where no row of a domain was drawn."""
    held_out: FloatArray | None = None
    """(E,) held-out losses now, of the domains' own sets (E = D, in the same order), or of the sets that the mixture is for."""
    weights: FloatArray | None = None
    """(E,) what each of these sets counts, one in the mean; None: all alike."""
    gradients: FloatArray | None = None
    """(D, E) inner products of the gradient of a training batch of each domain with that of each set's held-out loss."""
    gradient_norms: FloatArray | None = None
    """(D,) norms of the training batches' gradients."""
    excess: FloatArray | None = None
    """(D,) mean over tokens of max(loss - reference model's loss, 0) on training rows of each domain."""

    @property
    def counts(self) -> FloatArray:
        """`weights`, or ones, (E,)."""
        if self.weights is not None:
            return self.weights
        known = self.held_out if self.held_out is not None else np.ones(len(self.mixture))
        return np.ones(len(known) if self.gradients is None else self.gradients.shape[1])


class OnlineMixer(Protocol):
    """Decides what to train on while the model trains. Holds no state of its own."""

    @property
    def signals(self) -> frozenset[Signal]:
        """What it must be told."""

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """State and segment at the start of a run of `total_steps`; may do work on the runner first."""

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """The next state and segment."""


@dataclass(frozen=True, kw_only=True)
class AveragedTrial:
    """A trial run whose mixture an online mixer decided as it went."""

    segments: tuple[MixerSegment, ...]
    """What it was trained on, in order."""
    state: State
    """The mixer's last state."""
    losses: FloatArray  # (E,) held-out, at its end


class MixerTrialRunner(TrialRunner, Protocol):
    """A trial runner that can also put an online mixer in charge of a trial."""

    def watch(
        self, mixer: OnlineMixer, proxy: TrialModel, *, label: str, reference: Mixture | None = None
    ) -> AveragedTrial:
        """Train a trial model on what `mixer` decides as it trains.

        Args:
            mixer: Told what its `signals` name.
            proxy: What is trained.
            label: See `TrialRunner.train`.
            reference: First train a model of the same kind on this mixture; its losses are subtracted in `Observation.excess`.
        """
