r"""Aioli (Chen et al., arXiv 2411.05735): how mixtures move losses is measured inside the run, again and again.

In a round the loss is taken to fall linearly in the mixture: `L_i(t) - L_i(t + 1) = sum_j A_ij p_j`. A round is (algorithms 1 and 2)

1. sweeps: short segments on near-one-hot mixtures W in random order, held-out losses after each; A solves `W A^T = drops`;
2. exponentiated gradient: `p_j <- p_j exp(eta sum_i A_ij)` with A shifted to be non-negative and divided by its sum;
3. the rest of the round on p.

With targets, i runs over them, each row of A weighed as the objective weighs it.

Assumed, or different: the run begins with one short segment on the start mixture, because a mixer is told losses only after one; least
squares over all sweeps, which is the paper's average where sweeps are whole; in short runs sweeps and their steps shrink until they take at
most `sweep_share` of a round, and rounds are never shorter than twice the number of domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.errors import ConfigError
from opmix.methods.online.weights import exponentiated, interval, listed, segment, uniform
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class Aioli:
    """The mixer."""

    eta: float = 0.2
    """Step (published: 0.1 to 0.5, 0.2 in its examples)."""
    sweeps: int = 4
    """Sweeps of a round (published: 4 or 6)."""
    sweep_steps: int = 4
    """Optimizer steps on each mixture of a sweep (published: 4)."""
    sweep_share: float = 0.2
    """Most of a round that sweeps may take (published: 16 K of 250 steps, 0.19 with three domains)."""
    one_hot: float = 0.625
    """Share of its own domain in a sweep's mixture (published: 0.625 in its examples)."""
    ema: float | None = None
    """Weight of earlier rounds' A (published: 0.1 in its examples, "do not set this at first"); None: only the newest counts."""
    every: int | None = None
    """Optimizer steps of a round; None: a twentieth of the run (published: 250 of 5000)."""

    def __post_init__(self) -> None:
        if not 0 < self.one_hot <= 1:
            raise ConfigError(f"one_hot is {self.one_hot:g}; expected a share above 0 and at most 1")

    @property
    def signals(self) -> frozenset[Signal]:
        """Held-out losses."""
        return frozenset({"held_out"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """A short uniform segment, to learn the losses before the first sweep; see `OnlineMixer`."""
        domains, num = runner.problem.domains, len(runner.problem.domains)
        whole = max(interval(self.every, total_steps), 2 * num)
        sweeps = max(1, min(self.sweeps, int(self.sweep_share * whole / num)))
        steps = max(1, min(self.sweep_steps, int(self.sweep_share * whole / (num * sweeps))))
        state = {
            "domains": list(domains),
            "every": whole,
            "sweeps": sweeps,
            "sweep_steps": steps,
            "seed": runner.problem.seed,
            "round": 0,
            "weights": listed(uniform(num)),
            "sweeping": False,
            "queue": [],
            "before": [],
            "drops": [],
            "mixtures": [],
            "matrix": None,
        }
        return state, segment(state, steps)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """The next segment of the sweep, or the round's decision; see `OnlineMixer`."""
        assert seen.held_out is not None
        num, new = len(state["domains"]), {**state, "before": listed(seen.held_out)}
        if state["sweeping"]:
            new["drops"] = [*state["drops"], listed(np.array(state["before"]) - seen.held_out)]
            new["mixtures"] = [*state["mixtures"], listed(seen.mixture.weights)]
        else:
            generator = np.random.default_rng([state["seed"], state["round"]])
            new["queue"] = [int(k) for _ in range(state["sweeps"]) for k in generator.permutation(num)]
            new |= {"drops": [], "mixtures": [], "sweeping": True}
        if new["queue"]:
            index, *new["queue"] = new["queue"]
            mixture = Mixture(state["domains"], near_one_hot(num, index, self.one_hot))
            return new, MixerSegment(mixture, state["sweep_steps"])
        matrix = normalised(solve_matrix(np.array(new["mixtures"]), np.array(new["drops"])))
        start = np.array(state["weights"])
        if self.ema is not None:
            earlier = state["matrix"]
            matrix = matrix if earlier is None else (1 - self.ema) * matrix + self.ema * np.array(earlier)
            start = uniform(num)
        new |= {"matrix": listed(matrix), "round": state["round"] + 1, "sweeping": False}
        new["weights"] = listed(exponentiated(start, self.eta * (matrix * seen.counts[:, None]).sum(axis=0)))
        return new, segment(new, max(1, state["every"] - state["sweeps"] * state["sweep_steps"] * num))


def near_one_hot(num: int, index: int, share: float) -> FloatArray:
    """`share` of one domain, the rest in equal parts, (D,)."""
    weights = np.full(num, (1 - share) / max(num - 1, 1))
    weights[index] = share if num > 1 else 1.0
    return weights


def solve_matrix(mixtures: FloatArray, drops: FloatArray) -> FloatArray:
    """A (E, D) of `mixtures @ A.T = drops`, least squares: (M, D) and (M, E)."""
    return np.asarray(np.linalg.lstsq(mixtures, drops, rcond=None)[0].T)


def normalised(matrix: FloatArray) -> FloatArray:
    """Shifted so that no entry is negative, then divided by its sum."""
    shifted = matrix - min(float(matrix.min()), 0.0)
    total = float(shifted.sum())
    return np.asarray(shifted / total if total > 0 else shifted)
