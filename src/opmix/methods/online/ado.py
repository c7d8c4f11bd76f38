r"""Adaptive Data Optimization (Jiang et al., arXiv 2410.11820): scaling laws per domain, fitted while training on its own losses.

For every domain `L_k(n) = eps_k + beta_k n^(-alpha_k)` (section 3.1) is fitted to the training losses so far; its speed at the present n is
`|L_k'| = alpha_k (L_k - eps_k) / n`. With the prior mu, the credit `h_k^s` (h: moving average of what was trained on) and the floor (3.2):

    rho_k   ~ mu_k h_k^s |L_k'(n)|,   at least `floor`
    pi      = smoothing * rho + (1 - smoothing) * (mean of all rho so far)

n counts tokens of all domains, which is the published code's default. Assumed, or different from the publication:

- decisions per segment, not per step (published: laws anew every 1000 steps, mixture every step); averages run over decisions;
- a loss counts at the middle of its segment; losses are not filtered (published: Savitzky-Golay over 101 steps): a segment's mean is one;
- the law is fitted by variable projection over a grid of exponents in the same Huber loss of relative residuals (published: L-BFGS from 512
  starts on log losses), with the exponents that the published code allows;
- the credit is the paper's `h^s` (the code has `(h (1 - h))^s`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from opmix.errors import ConfigError
from opmix.methods.online.weights import at_least, interval, listed, segment, uniform
from opmix.mixing.mixture import FloatArray
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import TrialRunner

EXPONENTS = (0.05, 0.8)
"""Of the law (published code: bounded by 0.05 below, penalised above 0.8)."""


@dataclass(frozen=True, kw_only=True)
class Ado:
    """The mixer."""

    prior: Literal["size", "uniform"] = "size"
    """mu, also the start (published: the corpus' own shares)."""
    credit: float = 0.5
    """s (published: 0.5)."""
    history: float = 0.1
    """Share of the newest mixture in h (published: 0.1, per step)."""
    smoothing: float = 0.1
    """Share of the newest preference in the mixture (published: 0.1)."""
    floor: float = 0.01
    """Least share (published: 0.01)."""
    points: int = 4
    """Losses a law needs; before, the mixture is the prior (published: from step 1000 on, without the first 500)."""
    delta: float = 1e-3
    """Of the Huber loss (published: 1e-3)."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run."""

    def __post_init__(self) -> None:
        if self.points < 3:
            raise ConfigError(f"points is {self.points}; expected at least 3, as many as the law has parameters")

    @property
    def signals(self) -> frozenset[Signal]:
        """Training losses, which are free."""
        return frozenset({"train_loss"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """The prior; see `OnlineMixer`."""
        problem = runner.problem
        prior = problem.by_size.weights if self.prior == "size" else uniform(len(problem.domains))
        start = listed(at_least(prior, self.floor))
        state = {
            "domains": list(problem.domains),
            "every": interval(self.every, total_steps),
            "prior": start,
            "weights": start,
            "history": start,
            "mean": start,
            "decisions": 0,
            "tokens": 0.0,
            "seen": [],
            "losses": [],
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Fit the laws and follow their speeds; see `OnlineMixer`."""
        assert seen.train_loss is not None
        now = float(seen.tokens.sum())
        tokens = [*state["seen"], (state["tokens"] + now) / 2]
        losses = [*state["losses"], [None if np.isnan(v) else float(v) for v in seen.train_loss]]
        history = (1 - self.history) * np.array(state["history"]) + self.history * seen.mixture.weights
        new = {**state, "seen": tokens, "losses": losses, "tokens": now, "history": listed(history)}
        laws = [self._law(np.array(tokens), [row[k] for row in losses]) for k in range(len(history))]
        if all(law is not None for law in laws):
            speeds = np.array([speed(law, now) for law in laws if law is not None])
            liked = np.array(state["prior"]) * history**self.credit * speeds
            rho = liked / liked.sum() if liked.sum() > 0 else np.array(state["prior"])
            rho, mean, past = at_least(rho, self.floor), np.array(state["mean"]), state["decisions"] + 1
            weights = at_least((1 - self.smoothing) * mean + self.smoothing * rho, self.floor)
            new |= {"weights": listed(weights), "mean": listed(mean + (rho - mean) / (past + 1)), "decisions": past}
            new["laws"] = [list(law) for law in laws if law is not None]
        return new, segment(new)

    def _law(self, tokens: FloatArray, losses: list[float | None]) -> tuple[float, float, float] | None:
        known = np.array([v is not None for v in losses])
        if known.sum() < self.points:
            return None
        return fit_power_law(tokens[known], np.array([v for v in losses if v is not None]), delta=self.delta)


def speed(law: tuple[float, float, float], tokens: float) -> float:
    """`-dL/dn` of a law (eps, beta, alpha), nats per token."""
    _, beta, alpha = law
    return float(alpha * beta * tokens ** (-alpha - 1))


def fit_power_law(tokens: FloatArray, losses: FloatArray, *, delta: float = 1e-3) -> tuple[float, float, float]:
    """`L(n) = eps + beta n^-alpha` with eps, beta >= 0 and alpha in `EXPONENTS`, least Huber loss of relative residuals.

    Args:
        tokens: n, (N,), positive and rising.
        losses: (N,) nats, positive.
        delta: Relative residual from which the loss grows linearly.

    Returns:
        eps, beta and alpha.

    Examples:
        >>> n = np.array([1e3, 1e4, 1e5, 1e6])
        >>> [round(v, 4) for v in fit_power_law(n, 2 + 30 * n**-0.4)]
        [2.0, 30.0, 0.4]
    """
    x = tokens / tokens[-1]
    low, high = EXPONENTS
    for _ in range(8):  # each pass ten times finer than the one before
        grid = np.linspace(low, high, 41)
        cost, eps, beta = _projected(x, losses, grid, delta)
        best, width = int(np.argmin(cost)), 2 * (grid[1] - grid[0])
        low, high = max(EXPONENTS[0], grid[best] - width), min(EXPONENTS[1], grid[best] + width)
    alpha = float(grid[best])
    return float(eps[best]), float(beta[best] * tokens[-1] ** alpha), alpha


def _projected(
    x: FloatArray, losses: FloatArray, alphas: FloatArray, delta: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Cost, eps and beta at every exponent (A,), by reweighted least squares; x in (0, 1]."""
    basis = x ** -alphas[:, None] / losses  # the equations divided by the losses: residuals are relative
    one = np.broadcast_to(1 / losses, basis.shape)
    weights = np.ones_like(basis)
    for _ in range(20):
        a, b, c = ((weights * m).sum(axis=1) for m in (one * one, one * basis, basis * basis))
        d, e = (weights * one).sum(axis=1), (weights * basis).sum(axis=1)
        det = np.maximum(a * c - b * b, 1e-300)
        eps, beta = (c * d - b * e) / det, (a * e - b * d) / det
        eps, beta = np.where(beta < 0, d / a, eps), np.maximum(beta, 0.0)
        eps, beta = np.maximum(eps, 0.0), np.where(eps < 0, e / c, beta)
        off = np.abs(eps[:, None] * one + beta[:, None] * basis - 1)
        weights = delta / np.maximum(off, delta)
    cost = np.where(off > delta, delta * (off - delta / 2), off**2 / 2).sum(axis=1)
    return cost, eps, beta
