r"""TiKMiX-D (Wang et al., arXiv 2508.17677): a few times in a run, solve for the mixture of greatest influence on held-out losses.

The influence of domain j on task i is `S_ij = h_i^T H^-1 g_j`, h and g the gradients of held-out and training loss (eq. 8, sign turned so
that more is better). With `P = S w`, `P'_i = P_i / (max_j S_ij + 1e-8)` (eq. 9) and entropy H(w), the next mixture is (eqs. 10 and 11)

    min_w  a std(P') - b sum_i P'_i - c H(w)    subject to  w on the simplex,  S w >= S w_prior

solved by SLSQP from the uniform mixture, as in the paper; w_prior is the mixture in use.

Assumed: H is a multiple of the identity (the paper's inverse-Hessian products need second-order passes; first-order alignment is what
DoGE and GRAPE use), so this is TiKMiX-*style*; a row of S with no positive entry is scaled by its largest size instead, which keeps the
sign; where SLSQP finds no point that obeys the constraints, the mixture stays; with targets i runs over them, all alike, as the paper's
tasks do. TiKMiX-M (a regression on more influences) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize

from opmix.methods.online.weights import interval, listed, segment, uniform
from opmix.mixing.mixture import FloatArray
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import TrialRunner

_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Tikmix:
    """The mixer."""

    uniformity: float = 1.0
    """a (published: 1)."""
    gain: float = 1.0
    """b (published: 1)."""
    diversity: float = 1.0
    """c (published: 1)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a fifth of the run (published: every 200 of 1000 billion tokens)."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Gradients."""
        return frozenset({"gradients"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Uniform; see `OnlineMixer`."""
        domains = runner.problem.domains
        state = {
            "domains": list(domains),
            "every": interval(self.every, total_steps, parts=5),
            "weights": listed(uniform(len(domains))),
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Solve; see `OnlineMixer`."""
        assert seen.gradients is not None
        influence = seen.gradients.T
        weights = self.solve(influence, np.array(state["weights"]))
        new = {**state, "weights": listed(weights), "influence": listed(influence)}
        return new, segment(new)

    def objective(self, scaled: FloatArray, weights: FloatArray) -> float:
        """Equation 10 with normalised influences (E, D)."""
        gains = scaled @ weights
        entropy = -float(np.sum(weights * np.log(np.maximum(weights, 1e-12))))
        return float(self.uniformity * gains.std() - self.gain * gains.sum() - self.diversity * entropy)

    def solve(self, influence: FloatArray, prior: FloatArray) -> FloatArray:
        """The mixture of equation 11, (D,).

        Args:
            influence: S, (E, D).
            prior: The mixture in use, (D,).
        """
        num, largest = len(prior), influence.max(axis=1)
        scaled = influence / np.where(largest > 0, largest + _TINY, np.abs(influence).max(axis=1) + _TINY)[:, None]
        rules = [
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w: scaled @ (w - prior)},
        ]
        settings: Any = {"bounds": [(0.0, 1.0)] * num, "constraints": rules, "options": {"maxiter": 500, "ftol": 1e-10}}
        found = minimize(partial(self.objective, scaled), uniform(num), method="SLSQP", **settings)
        weights = np.maximum(np.asarray(found.x, dtype=np.float64), 0.0)
        total = float(weights.sum())
        if not np.isfinite(total) or total <= 0:
            return prior
        weights /= total
        return weights if float((scaled @ (weights - prior)).min()) >= -1e-6 else prior
