"""OP-Mix (arXiv 2605.15220), one decision: probe, interpolate, evaluate, fit, solve, decide.

Departures from the paper, each for a reason in docs/decisions.md: one probe is trained jointly so that interference between averaged
adapters can be measured; the law carries a term for it and predicts without; and the optimum is acted on only where its gain outweighs
the law's own error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from opmix.methods.adaptive import FIRST_POINTS, Looks, Searched, search_by_looks
from opmix.mixing.decision import Verdict, confirm, decide
from opmix.mixing.design import StageDesign, default_points, design_stage, interference, new_domains
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.table import ProxyTable
from opmix.mixing.twins import check_twins
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity, LawProposal, MethodContext, Simulation


@dataclass(frozen=True, kw_only=True)
class OpMix:
    """The method; its fields are the search's own settings."""

    share: float = 0.9
    joint: bool = True
    num_points: int | None = None
    huber_delta: float = 0.02
    verify: bool = True
    specialised: bool = False
    arbiter: bool = False
    looks: Looks | None = None
    """Look at probes while they train, and stop when that is enough; None: train and evaluate everything."""

    def design(self, stage: DecisionProblem, points: int | None = None) -> StageDesign:
        """Probes and points of a stage; `points` interpolated ones instead of what the settings say."""
        return design_stage(
            stage.domains,
            stage.old,
            share=self.share,
            joint=self.joint,
            num_points=self.num_points if points is None else points,
            seed=stage.seed,
            specialised=self.specialised,
            new=stage.new,
        )

    def propose(self, context: MethodContext) -> LawProposal:
        """One decision."""
        found = self.search(context)
        made = found.proposal
        action, promised = made.verdict.decision.action, made.verdict.decision.gain
        if (self.verify and action == "move") or (self.arbiter and promised > context.decision().min_gain):
            verdict = self.verified(context, found.design, found.simulated, made.verdict)
            made = replace(made, verdict=verdict, mixture=verdict.mixture)
        return made

    def search(self, context: MethodContext) -> Searched:
        """Probes, proxies and law, without the test of a move by a probe of its own."""
        return self.looked_at(context) if self.looks is None else search_by_looks(self, context, self.looks)

    def looked_at(self, context: MethodContext, fidelity: Fidelity = FULL, points: int | None = None) -> Searched:
        """One look at the probes; without `fidelity` the last."""
        design = self.design(context.stage, points)
        label = (
            "proxies"
            if fidelity == FULL
            else f"proxies-at-{fidelity.steps}-{len(design.points)}-every-{fidelity.thinning}"
        )
        simulated = context.simulate(design.probes, design.points, label=label, fidelity=fidelity)
        return Searched(design=design, simulated=simulated, proposal=self.solved(context, design, simulated))

    def few_points(self, stage: DecisionProblem, level: int) -> int:
        """Interpolated points of an early look; each level doubles them."""
        design = self.design(stage)
        coordinates, probes = design.coordinates, design.probes.probes
        line = coordinates.names != coordinates.domains and len(coordinates.names) == 2
        first = FIRST_POINTS if line else len(coordinates.names) + 1
        return min(self.num_points or default_points(len(probes), coordinates), first * 2**level)

    def evaluation_noise(self, context: MethodContext, design: StageDesign, simulated: Simulation) -> FloatArray:
        """What drawing other held-out sequences would change, (B, M, E); see `posterior.resampling_noise`."""
        kept, rule = np.flatnonzero(design.fitted), context.decision()
        rows = [n[kept] for n in simulated.nll]
        return resampling_noise(rows, simulated.tokens, num_draws=rule.num_draws, seed=rule.seed + 1)

    def solved(self, context: MethodContext, design: StageDesign, simulated: Simulation) -> LawProposal:
        """Law, optimum and decision from what was simulated, without the test of a move by a probe of its own."""
        stage, rule = context.stage, context.decision()
        table = proxy_table(design, simulated)
        fit = self.fit(table, with_interference=bool(design.twins))
        errors = np.array([loss_difference_error(simulated.nll, simulated.tokens, a, b) for a, b in design.twins])
        check = check_twins(design, table, fit.interference, errors)
        baseline = dict(zip(table.metrics, map(float, simulated.baseline), strict=True))
        settings = context.solve_settings(simulated.baseline, table.metrics)
        verdict = decide(
            fit,
            candidates=candidates(stage, settings.prior),
            reference="current",
            newcomers=bool(new_domains(stage.domains, stage.current)),
            coordinates=design.coordinates,
            settings=settings,
            constraints=context.constraints(baseline),
            decision=rule,
            noise=self.evaluation_noise(context, design, simulated),
            structural=check.structural,
            measured=_measured(design, table, candidates(stage, settings.prior)),
        )
        spread = float(np.ptp(table.losses.mean(axis=1)))
        return LawProposal(
            mixture=verdict.mixture, table=table, fit=fit, verdict=verdict, baseline=baseline,
            check=check.json(design, table.metrics, spread),
        )  # fmt: skip

    def verified(self, context: MethodContext, design: StageDesign, simulated: Simulation, verdict: Verdict) -> Verdict:
        """Train one probe on the optimum and hold it against the one trained on the reference, where there is one.

        Averaged adapters make small shares look cheap (docs/experiments.md); a probe that really saw the optimum does not.
        """
        current = context.stage.current.weights
        same = [i for i, row in enumerate(design.probes.R) if np.allclose(row, current, atol=1e-9)]
        allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
        if not same or not allowed:  # nothing to hold it against, or nothing to go back to
            return verdict
        optimum = verdict.optimum.mixture
        probe = ProbeDesign(("proposal",), design.probes.domains, optimum.weights[None])
        trained = context.simulate(
            probe, [InterpolationWeights(("proposal",), [1.0])], label="verification", fidelity=simulated.fidelity
        )
        kept, moved = objective_values(np.stack([simulated.losses[same[0]], trained.losses[0]]), verdict.settings)
        pairs = [np.stack([a[same[0]], b[0]]) for a, b in zip(simulated.nll, trained.nll, strict=True)]
        error = objective_error(loss_difference_error(pairs, simulated.tokens, 0, 1), verdict.settings)
        return confirm(verdict, float(kept - moved), error)

    def fit(self, table: ProxyTable, *, with_interference: bool) -> LawFit:
        """The law; with a term for interference where that predicts left-out points better."""
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


def left_out_error(fit: LawFit) -> float:
    """Root mean square of the mean loss's left-one-out residual, nats."""
    return float(np.sqrt(np.mean(fit.residuals.mean(axis=1) ** 2)))


def candidates(stage: DecisionProblem, prior: Mixture | None) -> dict[str, Mixture]:
    """Mixtures that are always scored beside the proposal."""
    named = {"current": stage.current, "uniform": Mixture.uniform(stage.domains), "size": stage.by_size}
    if prior is not None:
        named["prior"] = prior.on(stage.domains)
    return named


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


def _measured(design: StageDesign, table: ProxyTable, named: dict[str, Mixture]) -> dict[str, dict[str, float]]:
    """Losses of probes that were really trained on a candidate."""
    found = {}
    for name, mixture in named.items():
        for row, kind in enumerate(table.kinds):
            if kind == "probe" and np.allclose(table.mixtures[row], mixture.weights, atol=1e-9):
                found[name] = dict(zip(table.metrics, map(float, table.losses[row]), strict=True))
    return found
