"""OP-Mix (arXiv 2605.15220), one decision in the paper's order: design, simulate, fit, decide; then confirm.

Departures from the paper, each for a reason in docs/decisions.md: one probe is trained jointly so that interference between
averaged adapters can be measured; the law carries a term for it and predicts without; and the optimum is acted on only where
its gain outweighs the law's own error, and between old domains only where a probe trained on it confirms the gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from opmix.config import LawName, SearchConfig
from opmix.methods.adaptive import AdaptiveSchedule, Schedule, SearchOutcome, WholeRun
from opmix.methods.trained_probes import DISCREPANCY, Looks, best_measured, evidence, relative_kl
from opmix.methods.trained_probes import fit_law as fit_tokens
from opmix.mixing.decision import DecisionSettings, confirm, decide
from opmix.mixing.design import StageDesign, design_stage, interference, new_domains
from opmix.mixing.effective_tokens_fit import Discrepancy
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray, InterpolationWeights, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.table import ProxyTable
from opmix.mixing.twins import InterferenceCheck, check_twins
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity, LawProposal, MethodContext, Simulation


@dataclass(frozen=True, kw_only=True)
class OpMix:
    """The method; its fields are a search's settings."""

    share: float = 0.9
    joint: bool = True
    num_points: int | None = None
    huber_delta: float = 0.02
    law: LawName = "log_linear"
    """`log_linear` on interpolated proxies, as the paper has it; `effective_tokens` on the trained probes alone."""
    discrepancy: Discrepancy = field(default_factory=Discrepancy)
    """Between what probes foretell and what the stage gives; of effective tokens."""
    given_kl: bool = True
    """Whether the settings name a weight of the KL term; else the law in effective tokens has its own."""
    verify: bool = True
    """Whether a move must be confirmed by a probe trained on it."""
    schedule: Schedule = field(default_factory=WholeRun)
    """How far probes are trained and how much is evaluated."""

    @classmethod
    def of(cls, config: SearchConfig) -> OpMix:
        """The method with the settings of a search."""
        probes, proxies = config.probes, config.proxies
        adaptive = AdaptiveSchedule(
            steps=probes.steps,
            first=probes.first_look,
            sequences=proxies.eval_sequences,
            points=proxies.count,
            tolerance=probes.tolerance,
        )
        schedule: Schedule = adaptive if config.adaptive and adaptive.rung_steps else WholeRun()
        return cls(
            share=probes.share,
            joint=probes.joint,
            num_points=proxies.count,
            huber_delta=config.huber_delta,
            law=config.chosen_law,
            discrepancy=DISCREPANCY[config.probes.kind],
            given_kl=config.solve.kl is not None,
            verify=config.decision.verify,
            schedule=Looks(steps=probes.steps) if config.chosen_law == "effective_tokens" else schedule,
        )

    def propose(self, context: MethodContext) -> LawProposal:
        """One decision."""
        outcome = self.search(context)
        confirm = best_measured if self.law == "effective_tokens" else confirmed
        return confirm(context, outcome) if self.verify else outcome.proposal

    def search(self, context: MethodContext) -> SearchOutcome:
        """What the simulation says, at the fidelity that the schedule ends with; nothing is confirmed yet."""
        return self.schedule.run(partial(self.outcome_at, context), self.design(context.stage))

    def outcome_at(
        self, context: MethodContext, fidelity: Fidelity = FULL, num_points: int | None = None
    ) -> SearchOutcome:
        """Design, simulate, fit and decide at one fidelity, with `num_points` interpolations instead of the setting's."""
        design = self.design(context.stage, num_points)
        if self.law == "effective_tokens":
            return self.outcome_of_probes(context, design)
        early = f"-at-{fidelity.steps}-{len(design.points)}-every-{fidelity.thinning}"
        label = "proxies" if fidelity == FULL else f"proxies{early}"
        simulated = context.simulate(design.probes, design.points, label=label, fidelity=fidelity)
        return self.outcome(context, design, simulated)

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
            interpolate=self.law == "log_linear",
        )

    def outcome(self, context: MethodContext, design: StageDesign, simulated: Simulation) -> SearchOutcome:
        """Fit and decide on what was simulated (paper, section 3, steps 4 and 5)."""
        table = proxy_table(design, simulated)
        fit = self.fit(table, with_interference=bool(design.twins))
        check = interference_check(design, simulated, table, fit)
        noise = evaluation_noise(design, simulated, context.decision())
        spread = float(np.ptp(table.losses.mean(axis=1)))
        record = check.json(design, table.metrics, spread)
        return decided(context, design, simulated, table, fit, noise, structural=check.structural, check=record)

    def outcome_of_probes(self, context: MethodContext, design: StageDesign) -> SearchOutcome:
        """Train and look at the probes, fit the law in effective tokens to them, and decide."""
        found = evidence(context, design, self.schedule.early if isinstance(self.schedule, Looks) else ())
        fit, rule = fit_tokens(found, context.stage, self.discrepancy), context.decision()
        nothing = InterferenceCheck(twins=(), corrected=False, variation=0.0).json(design, found.table.metrics, 0.0)
        check = {**nothing, "verdict": "Nothing is interpolated: the law is fitted to trained probes alone."}
        noise = found.noise(rule.draws, rule.seed + 1)
        settings = context.solve_settings(found.last.baseline, found.table.metrics)
        kl = None if self.given_kl else relative_kl(fit, design, settings)
        return decided(context, design, found.last, found.table, fit, noise, structural=0.0, check=check, kl=kl)

    def fit(self, table: ProxyTable, *, with_interference: bool) -> LawFit:
        """One law per evaluation set; with a term for interference where that predicts left-out points better."""
        kept = table.fitted_rows
        law = partial(
            fit_law,
            table.mixtures[kept],
            table.losses[kept],
            domains=table.domains,
            metrics=table.metrics,
            delta=self.huber_delta,
        )
        plain = law()
        too_few = len(kept) < plain.rank + 4
        if not with_interference or table.interference is None or too_few:
            return plain
        term = law(interference=table.interference[kept])
        return term if left_out_error(term) < left_out_error(plain) else plain


def decided(
    context: MethodContext,
    design: StageDesign,
    simulated: Simulation,
    table: ProxyTable,
    fit: LawFit,
    noise: FloatArray,
    *,
    structural: float,
    check: Mapping[str, Any],
    kl: float | None = None,
) -> SearchOutcome:
    """Solve, score the alternatives, keep or move (paper, section 3, step 5; section 5 of docs/method.md)."""
    problem = context.stage
    baseline = dict(zip(table.metrics, map(float, simulated.baseline), strict=True))
    settings = context.solve_settings(simulated.baseline, table.metrics)
    settings = settings if kl is None else replace(settings, kl=kl)
    candidates = problem.candidates(settings.prior)
    verdict = decide(
        fit,
        candidates=candidates,
        reference="current",
        points=[table.points[i] for i in table.fitted_rows],
        newcomers=bool(new_domains(problem.domains, problem.current)),
        coordinates=design.coordinates,
        settings=settings,
        constraints=context.constraints(baseline),
        decision=context.decision(),
        noise=noise,
        structural=structural,
        measured={n: losses for n, m in candidates.items() if (losses := table.measured(m)) is not None},
    )
    proposal = LawProposal(
        mixture=verdict.mixture, table=table, fit=fit, verdict=verdict, baseline=baseline, check=check
    )
    return SearchOutcome(design=design, simulated=simulated, proposal=proposal, noise=noise)


def confirmed(context: MethodContext, outcome: SearchOutcome) -> LawProposal:
    """A move held against one probe trained on the optimum, where a probe was trained on the mixture in use.

    Averaged adapters make small shares look cheap (docs/experiments.md); a probe that really saw the optimum does not.
    """
    proposal, simulated, probes = outcome.proposal, outcome.simulated, outcome.design.probes
    verdict = proposal.verdict
    in_use = [i for i, row in enumerate(probes.R) if np.allclose(row, context.stage.current.weights, atol=1e-9)]
    allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
    if (
        verdict.decision.action == "keep" or not in_use or not allowed
    ):  # no move, nothing to hold it against or go back to
        return proposal
    probe = ProbeDesign(("proposal",), probes.domains, verdict.optimum.mixture.weights[None])
    alone = InterpolationWeights(("proposal",), [1.0])
    trained = context.simulate(probe, [alone], label="verification", fidelity=simulated.fidelity)
    losses = np.stack([simulated.losses[in_use[0]], trained.losses[0]])
    rows = [np.stack([kept[in_use[0]], moved[0]]) for kept, moved in zip(simulated.nll, trained.nll, strict=True)]
    kept_value, moved_value = objective_values(losses, verdict.settings)
    error = objective_error(loss_difference_error(rows, simulated.tokens, 0, 1), verdict.settings)
    verdict = confirm(verdict, float(kept_value - moved_value), error)
    return replace(proposal, verdict=verdict, mixture=verdict.mixture)


def proxy_table(design: StageDesign, simulated: Simulation) -> ProxyTable:
    """One row per simulated model."""
    weights: FloatArray = np.array([w.weights for w in design.points])
    return ProxyTable(
        points=design.names,
        kinds=design.kinds,
        domains=design.probes.domains,
        metrics=simulated.metrics,
        mixtures=design.mixtures,
        losses=simulated.losses,
        standard_errors=simulated.standard_errors,
        probes=design.probes.probes,
        weights=weights,
        interference=interference(weights, simulated.gram),
        fitted=design.fitted,
    )


def interference_check(design: StageDesign, simulated: Simulation, table: ProxyTable, fit: LawFit) -> InterferenceCheck:
    """Averaged against jointly trained probes on the same mixture."""
    errors = np.array([loss_difference_error(simulated.nll, simulated.tokens, a, b) for a, b in design.twins])
    return check_twins(design, table, fit.interference, errors)


def evaluation_noise(design: StageDesign, simulated: Simulation, rule: DecisionSettings) -> FloatArray:
    """What drawing other held-out sequences would change of the fitted losses, (B, M, E) nats."""
    rows = [sums[np.flatnonzero(design.fitted)] for sums in simulated.nll]
    return resampling_noise(rows, simulated.tokens, num_draws=rule.draws, seed=rule.seed + 1)


def left_out_error(fit: LawFit) -> float:
    """Root mean square of the mean loss's left-one-out residual, nats."""
    return float(np.sqrt(np.mean(fit.residuals.mean(axis=1) ** 2)))
