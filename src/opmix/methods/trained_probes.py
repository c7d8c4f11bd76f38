"""OP-Mix without interpolation: a law in effective tokens on trained probes, and a decision on trained candidates.

Averaged adapters make small shares look cheap and a straight law reads them so; a probe that was trained does not
(docs/evidence.md, the race of predictors). So the law meets the probes alone, each at several numbers of tokens: a look at a
probe before its end is a point of its own. The model before them is none: a probe on foreign text may end worse than it began,
which a law of what tokens are worth cannot say. Not in arXiv 2605.15220.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from opmix.methods.candidates import best_measured
from opmix.methods.outcome import SearchOutcome, decided
from opmix.methods.second_opinion import second_opinion
from opmix.mixing.design import StageDesign, design_stage
from opmix.mixing.effective_tokens_fit import Discrepancy, EffectiveTokensFit, fit_effective_tokens
from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import objective_values
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.problem import SolveSettings
from opmix.mixing.table import ProxyTable
from opmix.mixing.twins import InterferenceCheck
from opmix.protocols.mixing_method import DecisionProblem, Fidelity, LawProposal, MethodContext, Simulation
from opmix.results.opinion import KEY as SECOND

LOOKS = (2,)
"""Probes are also evaluated after half of their steps: a quarter as well paid nothing (benchmarks/evidence/probe_lengths.py)."""
FITTED_SEQUENCES, MOST_THINNING = 16, 4
"""Held-out sequences a set that the law is fitted to, at least, and every how manieth at most; the others judge the candidates."""
FEWEST_STEPS = 4
"""Of a look: fewer tell of the optimizer's start rather than of the data."""
RELATIVE_KL = 0.1
"""Weight of KL(p || prior), as a share of the spread of the objective that the law foretells between the probes: without one, optima for
targets ran into corners (measured; docs/evidence.md, the race of predictors)."""
DISCREPANCY = {
    "lora": Discrepancy(4.9, 0.5),
    "lora+embeddings": Discrepancy(4.9, 0.5),
    "full": Discrepancy(1.3, 0.9),
}
"""What a nat that probes foretell comes to in the stage, measured on the choosing cells of the race with probes of a quarter of the stage
and two looks (a fifteenth: 6.9 and 1.9, with twice the spread for adapters); of `lora+embeddings` assumed."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All looks at all probes. M points, E evaluation sets."""

    table: ProxyTable
    tokens: FloatArray  # (M,) supervised tokens each point was trained on
    probes: tuple[str, ...]  # (M,) the probe each point is of
    looks: tuple[Simulation, ...]  # in the order of the points: that at the probes' end first
    rows: tuple[FloatArray, ...]  # per evaluation set (M, S_e), summed nats by sequence

    @property
    def last(self) -> Simulation:
        """The look at the probes' end."""
        return self.looks[0]

    def noise(self, num_draws: int, seed: int) -> FloatArray:
        """What other held-out sequences would change, (B, M, E) nats."""
        return resampling_noise(list(self.rows), self.last.tokens, num_draws=num_draws, seed=seed)


@dataclass(frozen=True, kw_only=True)
class TrainedProbes:
    """The method; its fields are a search's settings."""

    steps: int
    """Optimizer steps of a probe."""
    sequences: int = 64
    """Held-out sequences of each evaluation set."""
    share: float = 0.9
    joint: bool = True
    discrepancy: Discrepancy = field(default_factory=Discrepancy)
    """Between what probes foretell and what the stage gives."""
    given_kl: bool = True
    """Whether the settings name a weight of the KL term; else it is `RELATIVE_KL` of the foretold spread."""
    verify: bool = True
    """Whether candidates are trained and the best measured one decides."""

    def propose(self, context: MethodContext) -> LawProposal:
        """One decision."""
        design = self.design(context.problem)
        found = evidence(context, design, self.looks)
        outcome = self.outcome(context, design, found)
        proposal, thinning = outcome.proposal, self.looks[-1].thinning
        second = second_opinion(context, design.probes, proposal.verdict, outcome.simulated.metrics, thinning=thinning)
        if second is not None:
            proposal = replace(proposal, evidence={**proposal.evidence, SECOND: second.json()})
        outcome = replace(outcome, proposal=proposal)
        fit = proposal.fit
        if not self.verify or not isinstance(fit, EffectiveTokensFit):
            return proposal
        return best_measured(context, outcome, found.looks, fit.noise, self.discrepancy)

    def search(self, context: MethodContext) -> SearchOutcome:
        """What the probes say; no candidate is trained yet."""
        design = self.design(context.problem)
        return self.outcome(context, design, evidence(context, design, self.looks))

    def outcome(self, context: MethodContext, design: StageDesign, found: Evidence) -> SearchOutcome:
        """Fit the law to all looks and decide."""
        fit, rule = fit_law(found, context.problem, self.discrepancy), context.decision()
        nothing = InterferenceCheck(twins=(), corrected=False, variation=0.0).json(design, found.table.metrics, 0.0)
        check = {
            **nothing,
            "verdict": "No mixture was simulated: what is foretold comes from the trained probes alone.",
        }
        noise = found.noise(rule.draws, rule.seed + 1)
        settings = context.solve_settings(found.last.baseline, found.table.metrics, simulated=found.last)
        kl = None if self.given_kl else relative_kl(fit, design, settings)
        return decided(context, design, found.last, found.table, fit, noise, structural=0.0, check=check, kl=kl)

    def design(self, problem: DecisionProblem) -> StageDesign:
        """One probe a coordinate and one on the mixture in use; nothing is interpolated."""
        return design_stage(
            problem.domains,
            problem.old,
            share=self.share,
            joint=self.joint,
            seed=problem.seed,
            new=problem.new,
            interpolate=False,
        )

    @property
    def looks(self) -> tuple[Fidelity, ...]:
        """The looks at a probe, that at its end last."""
        steps = sorted({self.steps // part for part in LOOKS if self.steps // part >= FEWEST_STEPS})
        thinning = max(2, min(MOST_THINNING, self.sequences // FITTED_SEQUENCES))
        return tuple(Fidelity(steps=s, thinning=thinning) for s in (*steps, None))

    def dearest_course(self, problem: DecisionProblem) -> tuple[tuple[Fidelity, int], ...]:
        """Fidelity and number of models of what is evaluated, for the second opinion without the current model."""
        probes = len(self.design(problem).points)
        return (*((fidelity, probes) for fidelity in self.looks), (self.looks[-1], probes - 1))


def evidence(context: MethodContext, design: StageDesign, wanted: tuple[Fidelity, ...]) -> Evidence:
    """Train the probes and look at them, shortest first."""
    looks: list[Simulation] = []
    for fidelity in wanted:
        label = "proxies" if fidelity.steps is None else f"probes-at-{fidelity.steps}"
        looks.append(context.simulate(design.probes, design.points, label=label, fidelity=fidelity))
    last, names = looks[-1], design.probes.probes
    table = ProxyTable(
        points=(
            *design.names,
            *(f"{name} after {look.fidelity.steps} steps" for look in looks[:-1] for name in design.names),
        ),
        kinds=(*design.kinds, *("look",) * (len(names) * (len(looks) - 1))),
        domains=design.probes.domains,
        metrics=last.metrics,
        mixtures=np.concatenate([design.mixtures] * len(looks)),
        losses=np.concatenate([last.losses, *(look.losses for look in looks[:-1])]),
    )
    ordered = [last, *looks[:-1]]
    return Evidence(
        table=table,
        tokens=np.array([look.probe_tokens for look in ordered for _ in names]),
        probes=tuple(name for _ in ordered for name in names),
        looks=tuple(ordered),
        rows=tuple(np.concatenate(sums) for sums in zip(*(look.nll for look in ordered), strict=True)),
    )


def fit_law(found: Evidence, problem: DecisionProblem, discrepancy: Discrepancy) -> EffectiveTokensFit:
    """The law of every evaluation set, asked at the stage's own length."""
    table = found.table
    return fit_effective_tokens(
        table.mixtures,
        found.tokens,
        table.losses,
        domains=table.domains,
        metrics=table.metrics,
        probes=found.probes,
        stage_tokens=problem.budget_tokens,
        own={m: m for m in table.metrics if m in table.domains},
        unique_tokens=problem.available_tokens,
        discrepancy=discrepancy,
        reference=problem.current.on(table.domains).weights,
    )


def relative_kl(fit: EffectiveTokensFit, design: StageDesign, settings: SolveSettings) -> float:
    """Weight of the KL term, nats."""
    return RELATIVE_KL * float(np.ptp(objective_values(fit.law.predict(design.probes.R), settings)))
