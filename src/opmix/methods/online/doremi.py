r"""DoReMi (Xie et al., arXiv 2305.10429): a small model trained by group DRO against a reference model; its average mixture is the answer.

Step 1 trains a reference model on a reference mixture. Step 2 trains a proxy model; with the clipped excess loss of domain k, the mean over
tokens of `max(proxy's loss - reference's loss, 0)`, (algorithm 1)

    a_k <- a_k exp(eta excess_k),   normalised,   then   a <- (1 - c) a + c / D

Step 3 gives the average of a over the run.

Assumed, or different: the paper draws domains evenly and weights their losses by a, ours draws them by a; an update per segment of its mean
excess, not one per step; a domain of which no row came keeps its last excess, as in the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from opmix.methods.online.averaged_trial import ProxySettings, proposal
from opmix.methods.online.weights import exponentiated, interval, listed, segment, smoothed, told, uniform
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.online_mixer import MixerSegment, MixerTrialRunner, Observation, Signal, State
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class GroupDro:
    """The mixer of step 2."""

    eta: float = 1.0
    """Step (published: 1)."""
    smoothing: float = 1e-3
    """c (published: 1e-3; its code's default 1e-4)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run (published: 1)."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Excess over a reference model."""
        return frozenset({"excess"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Uniform; see `OnlineMixer`."""
        num = len(runner.problem.domains)
        state = {
            "domains": list(runner.problem.domains),
            "every": interval(self.every, total_steps),
            "weights": listed(uniform(num)),
            "excess": [0.0] * num,
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Raise what exceeds the reference most; see `OnlineMixer`."""
        assert seen.excess is not None
        excess = np.maximum(told(seen.excess, state["excess"]), 0.0)
        weights = smoothed(exponentiated(state["weights"], self.eta * excess), self.smoothing)
        new = {**state, "excess": listed(excess), "weights": listed(weights)}
        return new, segment(new)


@dataclass(frozen=True, kw_only=True)
class DoReMi(ProxySettings):
    """The method."""

    reference: Literal["size", "uniform", "current"] = "size"
    """Mixture of the reference model (published: the corpus' own shares on The Pile, uniform on GLaM's data)."""
    eta: float = 1.0
    smoothing: float = 1e-3
    every: int | None = None

    def propose(self, context: MixerTrialRunner) -> Proposal:
        """Reference run and proxy run; see `MixingMethod`."""
        problem = context.problem
        known = {"size": problem.by_size, "uniform": Mixture.uniform(problem.domains), "current": problem.current}
        mixer = GroupDro(eta=self.eta, smoothing=self.smoothing, every=self.every)
        return proposal(context, mixer, self.proxy(problem), "doremi", known[self.reference])
