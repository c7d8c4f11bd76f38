"""A mixing method's context on a known loss surface: nothing is trained, a search takes milliseconds. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_errors
from opmix.mixing.problem import SolveSettings
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity, Simulation
from opmix.protocols.trials import TrialModel, Trials

Surface = Callable[[FloatArray], FloatArray]
"""Mixtures (M, D) to nats per token on each of E evaluation sets, (M, E)."""


def log_linear_surface(t: Sequence[Sequence[float]], c: float = 2.0) -> Surface:
    """`c + exp(t_e . p)`: the shape that the mixing law fits, `t` of shape (E, D).

    Examples:
        >>> log_linear_surface([[0.0, 0.0]])(np.array([[0.5, 0.5]]))
        array([[3.]])
    """
    slopes = np.asarray(t, dtype=np.float64)
    return lambda mixtures: np.asarray(c + np.exp(mixtures @ slopes.T))


@dataclass(frozen=True, kw_only=True)
class FakeCall:
    """One request for a simulation."""

    label: str
    design: ProbeDesign
    points: tuple[InterpolationWeights, ...]
    fidelity: Fidelity


@dataclass(kw_only=True)
class FakeContext:
    """A `MethodContext` whose losses are known; `calls` keeps what was asked for, in order.

    Delta weights are the probes' mixtures, so interference is how far apart the averaged probes' mixtures lie.
    """

    problem: DecisionProblem
    surface: Surface
    """Of models really trained on a mixture, at the end of the probes' run."""
    course: Callable[[FloatArray], FloatArray] | None = None
    """Tokens of each domain (M, D) to losses (M, E), instead of `surface`: what a run says at every length; the current model has seen
    none of them."""
    probe_tokens: float = 6400.0
    """Of a whole probe."""
    flattery: Surface | None = None
    """Added to the losses of interpolated points; None: interpolation is exact."""
    noise: float = 0.0
    """Standard deviation, in nats, of how much more one held-out sequence likes a domain than the next does."""
    order: float = 0.0
    """Standard deviation, in nats, of what another order of the data would change of a probe's losses, set by set and look by look."""
    sequences: int = 64
    """Held-out sequences of each evaluation set."""
    tokens: Sequence[float] = (100.0,)
    """Scored tokens of the sequences, repeated until there are enough."""
    steps: int = 64
    """Optimizer steps of a whole probe; shorter runs are so much nearer to the current model."""
    step_flops: float = 1.0
    sequence_flops: float = 1e-3
    """Of evaluating one model on one sequence."""
    settings: SolveSettings = field(default_factory=lambda: SolveSettings(kl=0.0))
    limits: Constraints = field(default_factory=Constraints)
    rule: DecisionSettings = field(default_factory=lambda: DecisionSettings(draws=40))
    seed: int = 0
    """Of the held-out sequences."""
    calls: list[FakeCall] = field(default_factory=list)
    _trained: dict[tuple[float, ...], int] = field(default_factory=dict)

    def simulate(
        self,
        design: ProbeDesign,
        points: Sequence[InterpolationWeights],
        *,
        label: str,
        fidelity: Fidelity = FULL,
    ) -> Simulation:
        """See `MethodContext`."""
        self.calls.append(FakeCall(label=label, design=design, points=tuple(points), fidelity=fidelity))
        mixtures = np.array([design.mixture_of(p).weights for p in points])
        averaged = np.array([np.count_nonzero(p.weights) > 1 for p in points])
        steps = self.steps if fidelity.steps is None else fidelity.steps
        seen = self.probe_tokens * steps / self.steps
        if self.course is None:
            baseline = self.surface(self.problem.current.weights[None])[0]
            losses = baseline + steps / self.steps * (self.surface(mixtures) - baseline)
        else:
            baseline, losses = self.course(np.zeros((1, mixtures.shape[1])))[0], self.course(seen * mixtures)
        if self.flattery is not None:
            losses = losses + averaged[:, None] * self.flattery(mixtures)
        tokens = np.resize(np.asarray(self.tokens, dtype=np.float64), self.sequences)
        losses = losses + np.array([self._ordered(mixture, losses.shape[1], fidelity) for mixture in mixtures])
        stride = fidelity.stride(self.sequences)
        own = self._sequences(losses.shape[1])[:, ::stride]
        tokens = tokens[::stride]
        nll = tuple(tokens * (losses[:, [e]] + mixtures @ own[e].T) for e in range(losses.shape[1]))
        counts = (tokens,) * len(nll)
        return Simulation(
            metrics=self.problem.domains,
            losses=np.stack([n.sum(axis=1) / tokens.sum() for n in nll], axis=1),
            standard_errors=loss_errors(nll, counts),
            nll=nll,
            tokens=counts,
            baseline=baseline,
            gram=design.R @ design.R.T,
            points=tuple(points),
            fidelity=fidelity,
            probe_tokens=seen,
            training_flops=self.step_flops * self._new_steps(design, steps, fidelity.order),
            evaluation_flops=self.sequence_flops * (len(points) + 1) * len(tokens) * len(nll),
        )

    def token_losses(self, design: ProbeDesign, *, label: str, thinning: int = 1) -> Mapping[str, FloatArray]:
        """See `MethodContext`; a sequence's mean is the loss of one token."""
        alone = [InterpolationWeights(design.probes, row) for row in np.eye(len(design.probes))]
        found = self.simulate(design, alone, label=f"tokens-{label}", fidelity=Fidelity(thinning=thinning))
        return {m: nll / count for m, nll, count in zip(found.metrics, found.nll, found.tokens, strict=True)}

    def solve_settings(
        self, baseline: FloatArray, metrics: Sequence[str], *, simulated: Simulation | None = None
    ) -> SolveSettings:
        """See `MethodContext`."""
        return self.settings

    def constraints(self, baseline: Mapping[str, float]) -> Constraints:
        """See `MethodContext`."""
        return self.limits

    def decision(self) -> DecisionSettings:
        """See `MethodContext`."""
        return self.rule

    def _sequences(self, num_metrics: int) -> FloatArray:
        """What each sequence adds to a loss by domain share, (E, S, D)."""
        shape = (num_metrics, self.sequences, len(self.problem.domains))
        return self.noise * np.random.default_rng(self.seed).standard_normal(shape)

    def _ordered(self, mixture: FloatArray, num_metrics: int, fidelity: Fidelity) -> FloatArray:
        """What the order of a probe's data adds to its losses, (E,); the same for the same look at the same probe in the same order."""
        steps = self.steps if fidelity.steps is None else fidelity.steps
        drawn = np.random.default_rng([self.seed, 1, *np.round(1e6 * mixture).astype(int), fidelity.order, steps])
        return self.order * drawn.standard_normal(num_metrics)

    def _new_steps(self, design: ProbeDesign, steps: int, order: int) -> int:
        """Steps of all probes that were not trained for an earlier simulation."""
        new = 0
        for row in design.R:
            key = (order, *np.round(row, 9))
            done = self._trained.get(key, 0)
            new += max(0, steps - done)
            self._trained[key] = max(steps, done)
        return new


@dataclass(kw_only=True)
class FakeRunner(FakeContext):
    """A `TrialRunner` on the same surface, for methods that train models of their own; averages are exact."""

    tokens_per_step: float = 100.0

    def train(self, mixtures: Sequence[Mixture], proxy: TrialModel, *, label: str) -> Trials:
        """See `TrialRunner`."""
        return self._trials([m.on(self.problem.domains).weights for m in mixtures])

    def average(self, mixtures: Sequence[Mixture], weights: FloatArray, proxy: TrialModel, *, label: str) -> Trials:
        """See `TrialRunner`."""
        return self._trials(list(weights @ np.array([m.on(self.problem.domains).weights for m in mixtures])))

    def _trials(self, rows: Sequence[FloatArray]) -> Trials:
        losses = self.surface(np.array(rows))
        return Trials(
            metrics=self.problem.domains,
            mixtures=tuple(Mixture(self.problem.domains, row) for row in rows),
            losses=losses,
            standard_errors=np.full_like(losses, 1e-3),
            baseline=self.surface(self.problem.current.weights[None])[0] + 0.5,
        )
