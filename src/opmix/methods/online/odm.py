r"""Online Data Mixing (Albalak et al., arXiv 2312.02406): an EXP3 bandit whose arms are domains and whose reward is the training loss.

A domain that still has a high loss is taken to have more to teach. Per step t with K domains (section 3, algorithm 1; published code):

    R_k += (1[k drawn] / pi_k) L_k / scale
    eps_t = min(1/K, sqrt(ln K / (K t)))
    pi_k  = (1 - K eps_t) exp(eps_{t-1} R_k) / sum_j exp(eps_{t-1} R_j) + eps_t

Ours decides per segment: a segment of n steps in which domain k had the share r_k of the tokens adds `n (r_k / pi_k) L_k / scale`, which is
what n steps of the paper's add on average, and t counts optimizer steps. Assumed: rewards are summed, as in the published code (the paper
writes a moving average), and the start is uniform (the code starts from the corpus' own shares and warms up on them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.methods.online.weights import exponentiated, interval, listed, segment, uniform
from opmix.mixing.mixture import FloatArray
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class Odm:
    """The mixer."""

    scale: float = 10.0
    """Losses are divided by it, so that rewards are about in [0, 1] (published code: 10)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run (published: 1)."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Training losses, which are free."""
        return frozenset({"train_loss"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Uniform; see `OnlineMixer`."""
        num = len(runner.problem.domains)
        state = {
            "domains": list(runner.problem.domains),
            "every": interval(self.every, total_steps),
            "step": 0,
            "weights": listed(uniform(num)),
            "rewards": [0.0] * num,
            "tokens": [0.0] * num,
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """EXP3; see `OnlineMixer`."""
        assert seen.train_loss is not None
        drawn = np.maximum(seen.tokens - np.array(state["tokens"]), 0.0)
        steps, shares = seen.step - state["step"], drawn / max(float(drawn.sum()), 1.0)
        rewards = np.array(state["rewards"]) + importance_weighted(
            seen.train_loss / self.scale, shares, seen.mixture.weights, steps
        )
        num = len(rewards)
        chosen = exponentiated(uniform(num), exploration(num, state["step"]) * rewards)
        eps = exploration(num, seen.step)
        new = {
            **state,
            "step": seen.step,
            "rewards": listed(rewards),
            "tokens": listed(seen.tokens),
            "weights": listed((1 - num * eps) * chosen + eps),
        }
        return new, segment(new)


def importance_weighted(losses: FloatArray, shares: FloatArray, policy: FloatArray, steps: int) -> FloatArray:
    """Estimated rewards of `steps` draws, (D,): `steps * share / policy * loss`, and 0 for what was not drawn.

    Its mean over draws from `policy` is `steps * loss` for every domain, whatever the policy.
    """
    seen = (shares > 0) & (policy > 0) & ~np.isnan(losses)
    ratio = np.divide(shares, policy, out=np.zeros_like(shares), where=seen)
    return np.asarray(steps * ratio * np.where(seen, losses, 0.0))


def exploration(num: int, step: int) -> float:
    """`min(1/K, sqrt(ln K / (K t)))`; 1/K before the first step."""
    return 1 / num if step < 1 else min(1 / num, float(np.sqrt(np.log(num) / (num * step))))
