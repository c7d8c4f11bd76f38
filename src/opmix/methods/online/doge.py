r"""DoGE (Fan et al., arXiv 2310.15393): a small model is trained on the domains whose gradients serve all domains' held-out losses.

With g_k the gradient of domain k's training loss and h_e that of the held-out loss of domain e (eq. 5; algorithm 1):

    W_k = <g_k, sum_e h_e> / mean_j |g_j|,  clipped to [0, 5];    a_k <- a_k exp(lr W_k / mu),   normalised

The answer is the average of a over the run. Normalisation and clipping are those of the published code.

With targets, e runs over them, each h_e weighed as the objective weighs it (the paper's out-of-domain generalisation).

Assumed, or different: h is measured on held-out rows (the paper's universal generalisation takes another training batch); the paper
weights losses by a and draws evenly, ours draws by a; a segment of n steps counts as n updates with the gradients at its end; the peak rate
is taken as 5e-4 and scaled by our schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.methods.online.averaged_trial import ProxySettings, proposal
from opmix.methods.online.weights import exponentiated, interval, listed, segment, smoothed, uniform
from opmix.mixing.mixture import FloatArray
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.online_mixer import MixerSegment, MixerTrialRunner, Observation, Signal, State
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class GradientAlignment:
    """The mixer of the proxy run."""

    mu: float = 0.05
    """How hard the weights are to move (published: 0.05 on SlimPajama, as far as could be checked)."""
    rate: float = 5e-4
    """Highest learning rate of the rule (assumed; the paper uses the model's own)."""
    limit: float = 5.0
    """Largest alignment that counts (published code: 5)."""
    smoothing: float = 0.0
    """Share that is spread evenly (published code: 0)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run (published: 1)."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Gradients."""
        return frozenset({"gradients"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Uniform; see `OnlineMixer`."""
        state = {
            "domains": list(runner.problem.domains),
            "every": interval(self.every, total_steps),
            "step": 0,
            "weights": listed(uniform(len(runner.problem.domains))),
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Follow the alignment; see `OnlineMixer`."""
        assert seen.gradients is not None
        assert seen.gradient_norms is not None
        steps = seen.step - state["step"]
        scores = alignment(seen.gradients * seen.counts, seen.gradient_norms, self.limit)
        moved = exponentiated(state["weights"], steps * self.rate * seen.learning_rate / self.mu * scores)
        new = {**state, "step": seen.step, "weights": listed(smoothed(moved, self.smoothing))}
        return new, segment(new)


def alignment(gradients: FloatArray, norms: FloatArray, limit: float) -> FloatArray:
    """W, (D,): what a step on each domain does for all held-out losses, in units of the mean gradient's size.

    Examples:
        >>> alignment(np.array([[3.0, 1.0], [-2.0, 1.0]]), np.array([1.0, 3.0]), 5.0).round(3).tolist()
        [2.0, 0.0]
    """
    return np.asarray(np.clip(gradients.sum(axis=1) / (norms.mean() + 1e-6), 0.0, limit))


@dataclass(frozen=True, kw_only=True)
class Doge(ProxySettings):
    """The method."""

    mu: float = 0.05
    rate: float = 5e-4
    smoothing: float = 0.0
    every: int | None = None

    @property
    def mixer(self) -> GradientAlignment:
        """Of the proxy run."""
        return GradientAlignment(mu=self.mu, rate=self.rate, smoothing=self.smoothing, every=self.every)

    @property
    def signals(self) -> frozenset[Signal]:
        """What the proxy run serves."""
        return self.mixer.signals

    def propose(self, context: MixerTrialRunner) -> Proposal:
        """The proxy run; see `MixingMethod`."""
        return proposal(context, self.mixer, self.proxy(context.problem), "doge", None)
