"""Mixing methods and what they may ask for: a decision problem, simulated losses, a proposal.

A method sees a problem and a context. It never meets executors, the run folder or torch, so it is tested with a fake context
(`opmix.testing.FakeContext`) and new ways of running touch no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, Verdict
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.problem import SolveSettings
from opmix.mixing.table import ProxyTable
from opmix.protocols.law import LawFit


@dataclass(frozen=True, kw_only=True)
class DecisionProblem:
    """One decision: what the current model has learned, what is on offer, and how long the next stretch is."""

    domains: tuple[str, ...]
    old: Mixture | None
    """Mixture the model was last trained on; None: unknown, taken as uniform."""
    budget_tokens: int
    available_tokens: Mapping[str, int]
    seed: int = 0
    new: tuple[str, ...] | None = None
    """Domains with a coordinate of their own, in the old mixture or not; None: those not in the old mixture."""

    @property
    def current(self) -> Mixture:
        """The old mixture over all domains of the stage; what "keep" means."""
        return (self.old or Mixture.uniform(self.domains)).on(self.domains)

    def candidates(self, prior: Mixture | None) -> dict[str, Mixture]:
        """Mixtures that are always scored beside the proposal."""
        named = {"current": self.current, "uniform": Mixture.uniform(self.domains), "size": self.by_size}
        return named if prior is None else {**named, "prior": prior.on(self.domains)}

    @property
    def by_size(self) -> Mixture:
        """Shares proportional to available tokens."""
        return Mixture.normalised({d: float(self.available_tokens[d]) for d in self.domains})


@dataclass(frozen=True)
class Fidelity:
    """How much work a simulation is worth; the default is all that the settings allow."""

    steps: int | None = None
    """Optimizer steps after which the probes are looked at, of the run that the settings plan; None: at its end."""
    thinning: int = 1
    """Every how manieth held-out sequence is used."""
    order: int = 0
    """Of the data, and where a probe starts: 0 is the search's own, every other number another."""

    def stride(self, sequences: int) -> int:
        """The same for an evaluation set of so many sequences: four stay where there are four."""
        return max(1, min(self.thinning, sequences // 4))


FULL = Fidelity()
"""Everything."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Held-out losses of M simulated models, paired over sequences."""

    metrics: tuple[str, ...]
    losses: FloatArray  # (M, E) nats per token
    standard_errors: FloatArray  # (M, E)
    nll: tuple[FloatArray, ...]  # per eval set (M, S_e), summed nats
    tokens: tuple[FloatArray, ...]  # per eval set (S_e,)
    baseline: FloatArray  # (E,) the current model
    gram: FloatArray  # (P, P) inner products of the probes' delta weights
    points: tuple[InterpolationWeights, ...] = ()
    """What was simulated, over the P probes."""
    fidelity: Fidelity = FULL
    """What it was worth; simulations that are compared must agree."""
    probe_tokens: float = 0.0
    """Supervised tokens that every probe was trained on."""
    training_flops: float = 0.0
    """What the probes were trained for it, and for no simulation before it."""
    evaluation_flops: float = 0.0


class MethodContext(Protocol):
    """What a method may ask for."""

    @property
    def problem(self) -> DecisionProblem:
        """The decision to make."""

    def simulate(
        self,
        design: ProbeDesign,
        points: Sequence[InterpolationWeights],
        *,
        label: str,
        fidelity: Fidelity = FULL,
    ) -> Simulation:
        """Train the probes of the design and evaluate the model at each interpolation.

        `label` names the work in the run folder; held-out sequences are the same for all labels. With more steps in
        `fidelity` than before, the probes' runs go on.
        """

    def token_losses(self, design: ProbeDesign, *, label: str, thinning: int = 1) -> Mapping[str, FloatArray]:
        """Train the probes of the design; nats of every scored held-out token under each, (P, N_e) by evaluation set.

        Choice tasks have none. `label` names the work in the run folder; of the held-out sequences every `thinning`-th is read.
        """

    def solve_settings(
        self, baseline: FloatArray, metrics: Sequence[str], *, simulated: Simulation | None = None
    ) -> SolveSettings:
        """Objective, KL and prior, given the current model's losses; targets that do not stand out of noise in `simulated` have no say."""

    def constraints(self, baseline: Mapping[str, float]) -> Constraints:
        """What the mixture must obey, given the current model's losses."""

    def decision(self) -> DecisionSettings:
        """When to believe a gain."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A method's answer."""

    mixture: Mixture
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """JSON-like: what it was decided on, for the record and for people."""


@dataclass(frozen=True, kw_only=True)
class LawProposal(Proposal):
    """An answer read off a mixing law, with everything that says how sure it is."""

    table: ProxyTable
    fit: LawFit
    verdict: Verdict
    check: Mapping[str, Any]
    baseline: Mapping[str, float]


class MixingMethod(Protocol):
    """Chooses the mixture of a stage."""

    def propose(self, context: MethodContext) -> Proposal:
        """One decision."""
