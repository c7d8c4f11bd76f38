"""OP-Mix (arXiv 2605.15220), one decision in the paper's order: design, simulate, fit, decide; then confirm.

Departures from the paper, each for a reason in docs/decisions.md: one probe is trained jointly so that interference between
averaged adapters can be measured; the law carries a term for it and predicts without; and the optimum is acted on only where
its gain outweighs the law's own error, and between old domains only where a probe trained on it confirms the gain. Where
several domains are weighed, `opmix.methods.trained_probes` replaces interpolation and law.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from opmix.config import SearchConfig
from opmix.methods.adaptive import AdaptiveSchedule, Schedule, WholeRun
from opmix.methods.confirmation import confirmed
from opmix.methods.outcome import SearchOutcome, decided
from opmix.methods.proxies import evaluation_noise, interference_check, law_of_proxies, proxy_table
from opmix.methods.trained_probes import DISCREPANCY, TrainedProbes
from opmix.mixing.design import StageDesign, design_stage
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity, LawProposal, MethodContext, Simulation


@dataclass(frozen=True, kw_only=True)
class OpMix:
    """The method; its fields are a search's settings."""

    share: float = 0.9
    joint: bool = True
    num_points: int | None = None
    huber_delta: float = 0.02
    verify: bool = True
    """Whether a move must be confirmed by a probe trained on it."""
    schedule: Schedule = field(default_factory=WholeRun)
    """How far probes are trained and how much is evaluated."""

    def propose(self, context: MethodContext) -> LawProposal:
        """One decision."""
        outcome = self.search(context)
        return confirmed(context, outcome) if self.verify else outcome.proposal

    def search(self, context: MethodContext) -> SearchOutcome:
        """What the simulation says, at the fidelity that the schedule ends with; nothing is confirmed yet."""
        return self.schedule.run(partial(self.outcome_at, context), self.design(context.problem))

    def outcome_at(
        self, context: MethodContext, fidelity: Fidelity = FULL, num_points: int | None = None
    ) -> SearchOutcome:
        """Design and simulate at one fidelity, with `num_points` interpolations instead of the setting's; then fit and decide."""
        design = self.design(context.problem, num_points)
        early = f"-at-{fidelity.steps}-{len(design.points)}-every-{fidelity.thinning}"
        label = "proxies" if fidelity == FULL else f"proxies{early}"
        return self.outcome(
            context, design, context.simulate(design.probes, design.points, label=label, fidelity=fidelity)
        )

    def outcome(self, context: MethodContext, design: StageDesign, simulated: Simulation) -> SearchOutcome:
        """Fit and decide on what was simulated (paper, section 3, steps 4 and 5)."""
        table = proxy_table(design, simulated)
        fit = law_of_proxies(table, delta=self.huber_delta, with_interference=bool(design.twins))
        check = interference_check(design, simulated, table, fit)
        noise = evaluation_noise(design, simulated, context.decision())
        record = check.json(design, table.metrics, float(np.ptp(table.losses.mean(axis=1))))
        return decided(context, design, simulated, table, fit, noise, structural=check.structural, check=record)

    def design(self, problem: DecisionProblem, num_points: int | None = None) -> StageDesign:
        """Probes and interpolation points (paper, section 3, steps 1 and 2)."""
        return design_stage(
            problem.domains,
            problem.old,
            share=self.share,
            joint=self.joint,
            num_points=self.num_points if num_points is None else num_points,
            seed=problem.seed,
            new=problem.new,
        )

    def dearest_course(self, problem: DecisionProblem) -> tuple[tuple[Fidelity, int], ...]:
        """Fidelity and number of models of what is evaluated, at most."""
        course = (*self.schedule.dearest_course(self.design(problem)), (FULL, None))
        return tuple((fidelity, len(self.design(problem, points).points)) for fidelity, points in course)


def method_of(config: SearchConfig) -> OpMix | TrainedProbes:
    """The method with the settings of a search: as published, or on trained probes alone; see `SearchConfig.chosen_law`."""
    probes, proxies, verify = config.probe_settings, config.proxies, config.decision.verify
    if config.chosen_law == "effective_tokens":
        return TrainedProbes(
            share=probes.share,
            joint=probes.joint,
            steps=probes.num_steps,
            sequences=proxies.eval_sequences,
            discrepancy=DISCREPANCY[probes.kind],
            given_kl=config.solve.kl is not None,
            verify=verify,
        )
    adaptive = AdaptiveSchedule(
        steps=probes.num_steps,
        first=probes.first_look,
        sequences=proxies.eval_sequences,
        points=proxies.count,
        tolerance=probes.tolerance,
    )
    return OpMix(
        share=probes.share,
        joint=probes.joint,
        num_points=proxies.count,
        huber_delta=config.huber_delta,
        verify=verify,
        schedule=adaptive if config.adaptive and adaptive.rung_steps else WholeRun(),
    )
