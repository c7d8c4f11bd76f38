r"""GRAPE (Fan et al., arXiv 2505.20380): domains weighted for the tasks that improve least.

Two weightings take turns: z over tasks (group DRO), p over domains. With g_k the gradient of domain k's training loss, h_n and l_n gradient
and value of task n's held-out loss, the rate of improvement `RoI_n = (l_n before - l_n) / l_n before`, and learning rate `lr`:

    z_n <- z_n exp(-lr RoI_n / mu_task)                              every 100 steps
    p_k <- p_k exp( lr <g_k, sum_n z_n h_n / l_n> / mu_domain)       every 10 steps

(`h_n / l_n` is the gradient of log l_n; intervals and both mu are the defaults of the published trainer.) Tasks here are the stage's
domains' held-out sets; with targets these, z beginning at their weights.

Assumed, or different: a segment of n steps counts as n / 10 updates of p and n / 100 of z, with the gradients at its end; the peak rate of
the paper is taken as 5e-4 and scaled by our schedule; one segment moves no log weight by more than `largest` against the mean, because
alignments of raw gradients have no scale; z follows the rate of improvement that was measured over the segment, not the paper's
first-order estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.methods.online.weights import exponentiated, interval, listed, segment, uniform
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class Grape:
    """The mixer."""

    mu_domain: float = 1e-3
    """How hard p is to move (published default: 1e-3, every 10 steps)."""
    mu_task: float = 1e-4
    """How hard z is to move (published default: 1e-4, every 100 steps)."""
    rate: float = 5e-4
    """Highest learning rate of the rule (assumed; the paper uses the model's own)."""
    largest: float = 1.0
    """Most that a log weight may move in a segment (not in the paper)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Gradients and held-out losses."""
        return frozenset({"gradients", "held_out"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Uniform over domains and tasks; see `OnlineMixer`."""
        even = listed(uniform(len(runner.problem.domains)))
        state = {
            "domains": list(runner.problem.domains),
            "every": interval(self.every, total_steps),
            "weights": even,
            "tasks": even,
            "before": None,
            "step": 0,
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Tasks, then domains; see `OnlineMixer`."""
        assert seen.gradients is not None
        assert seen.held_out is not None
        steps, rate = seen.step - state["step"], self.rate * seen.learning_rate
        tasks = np.array(state["tasks"])
        if seen.weights is not None and state["before"] is None:  # targets: the weights they begin with
            tasks = seen.weights / seen.weights.sum()
        if state["before"] is not None:
            before = np.array(state["before"])
            improved = (before - seen.held_out) / before
            tasks = exponentiated(tasks, -steps / 100 * rate / self.mu_task * improved)
        scores = steps / 10 * rate / self.mu_domain * (seen.gradients @ (tasks / seen.held_out))
        scores = np.clip(scores - scores.mean(), -self.largest, self.largest)
        new = {
            **state,
            "tasks": listed(tasks),
            "before": listed(seen.held_out),
            "step": seen.step,
            "weights": listed(exponentiated(state["weights"], scores)),
        }
        return new, segment(new)
