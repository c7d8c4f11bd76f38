"""OP-Mix without interpolation: a law in effective tokens on trained probes, and a decision on trained candidates.

Averaged adapters make small shares look cheap and a straight law reads them so; a probe that was trained does not
(docs/evidence.md, the race of predictors). So the law meets the probes alone, each at several numbers of tokens: a look at a
probe before its end is a point of its own. The model before them is none: a probe on foreign text may end worse than it began,
which a law of what tokens are worth cannot say. Not in arXiv 2605.15220.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from opmix.methods.outcome import SearchOutcome, decided
from opmix.methods.second_opinion import second_opinion
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import confirm
from opmix.mixing.design import StageDesign, design_stage
from opmix.mixing.effective_tokens_fit import Discrepancy, EffectiveTokensFit, fit_effective_tokens
from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.solver import SolveSettings
from opmix.mixing.table import ProxyTable
from opmix.mixing.twins import InterferenceCheck
from opmix.protocols.law import LawFit
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
SAME = 1e-3
"""Shares that differ by less are one mixture."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All looks at all probes. M points, E evaluation sets."""

    table: ProxyTable
    tokens: FloatArray  # (M,) supervised tokens each point was trained on
    probes: tuple[str, ...]  # (M,) the probe each point is of
    last: Simulation
    rows: tuple[FloatArray, ...]  # per evaluation set (M, S_e), summed nats by sequence

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
        outcome = self.search(context)
        proposal, thinning = outcome.proposal, self.looks[-1].thinning
        second = second_opinion(
            context, outcome.design.probes, proposal.verdict, outcome.simulated.metrics, thinning=thinning
        )
        if second is not None:
            proposal = replace(proposal, evidence={**proposal.evidence, SECOND: second.json()})
        outcome = replace(outcome, proposal=proposal)
        return best_measured(context, outcome, self.discrepancy) if self.verify else proposal

    def search(self, context: MethodContext) -> SearchOutcome:
        """What the probes say; no candidate is trained yet."""
        design = self.design(context.stage)
        return self.outcome(context, design, evidence(context, design, self.looks))

    def outcome(self, context: MethodContext, design: StageDesign, found: Evidence) -> SearchOutcome:
        """Fit the law to all looks and decide."""
        fit, rule = fit_law(found, context.stage, self.discrepancy), context.decision()
        nothing = InterferenceCheck(twins=(), corrected=False, variation=0.0).json(design, found.table.metrics, 0.0)
        check = {**nothing, "verdict": "Nothing is interpolated: the law is fitted to trained probes alone."}
        noise = found.noise(rule.draws, rule.seed + 1)
        settings = context.solve_settings(found.last.baseline, found.table.metrics)
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
        last=last,
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


def best_measured(
    context: MethodContext, outcome: SearchOutcome, discrepancy: Discrepancy | None = None
) -> LawProposal:
    """Train probes on the optimum and on its half-way to the mixture in use; the best that was measured wins.

    "Keep" only where the mixture in use is best, or level: nothing beats its own probe as surely as the settings ask. Judged on the
    held-out sequences that the law was not fitted to: those that chose the optimum like it by chance too. The error of a measured
    gain counts sequences and what another order of the data would change; its probability counts that two were tried. A candidate
    whose probe breaks a loss limit, or will in the stage by what a measured nat is worth there (`discrepancy`), is out.
    """
    proposal, probes = outcome.proposal, outcome.design.probes
    verdict, current = proposal.verdict, context.stage.current
    in_use = [i for i, row in enumerate(probes.R) if np.allclose(row, current.weights, atol=1e-9)]
    allowed = next(a.feasible for a in verdict.alternatives if a.name == verdict.decision.reference)
    optimum = verdict.optimum.mixture
    if not in_use or not allowed or np.allclose(optimum.weights, current.weights, atol=SAME):
        return proposal
    tried = {"proposal": optimum, "halfway": Mixture(optimum.names, (optimum.weights + current.weights) / 2)}
    rows = {name: mixture.weights for name, mixture in tried.items()}
    trained = _trained(context, {probes.probes[in_use[0]]: probes.R[in_use[0]], **rows}, probes.domains)
    unseen = _unseen(outcome.simulated, trained)
    unseen_nll = [nll[:, kept] for nll, kept in zip(trained.nll, unseen, strict=True)]
    tokens = [count[kept] for count, kept in zip(trained.tokens, unseen, strict=True)]
    losses = np.stack([nll.sum(axis=1) / count.sum() for nll, count in zip(unseen_nll, tokens, strict=True)], axis=1)
    values = objective_values(losses, verdict.settings)
    at_current = dict(zip(trained.metrics, proposal.fit.law.predict(current.weights)[0], strict=True))
    factor = (discrepancy or Discrepancy()).factor
    broken = [_limits_broken(verdict.constraints, trained, 1 + i, at_current, factor) for i in range(len(tried))]
    gains = values[0] - values[1:]
    best = int(np.argmax(np.where([bool(b) for b in broken], -np.inf, gains)))
    sequences = objective_error(loss_difference_error(unseen_nll, tokens, 0, 1 + best), verdict.settings)
    noise = objective_error(_between_probes(proposal.fit, len(probes.R)), verdict.settings)
    order = np.sqrt(2) * max(noise, _scatter(losses, values, verdict.settings))
    error, count = float(np.hypot(sequences, order)), len(tried) - sum(map(bool, broken))
    gain = float(gains[best]) if count else -np.inf
    verdict = confirm(verdict, gain, error, list(tried.values())[best], tries=count)
    candidates = [
        {"name": name, "mixture": dict(mixture), "measured_gain": float(gain), "breaks": list(limits)}
        for (name, mixture), gain, limits in zip(tried.items(), gains, broken, strict=True)
    ]
    made = {**proposal.evidence, "candidates": candidates}
    return replace(proposal, verdict=verdict, mixture=verdict.mixture, evidence=made)


def _scatter(losses: FloatArray, values: FloatArray, settings: SolveSettings) -> float:
    """Standard deviation of one probe's objective by what the mixture in use, the optimum and their half-way (rows) leave of a line.

    Losses of mixtures between two are below the line between theirs (convexity), and little below; the rest is the probes' own noise.
    Sets are taken as independent or as one, whichever is worse.
    """
    bends = [np.array([-0.5, -0.5, 1.0]) @ part / np.sqrt(1.5) for part in (losses, values)]
    return max(objective_error(np.abs(bends[0]), settings), float(np.sqrt(2) * max(bends[1], 0.0)))


def _unseen(fitted: Simulation, trained: Simulation) -> list[npt.NDArray[np.bool_]]:
    """By set, which of all sequences the law was not fitted to; all where there are no others."""
    chosen = []
    for few, every in zip(fitted.tokens, trained.tokens, strict=True):
        kept = np.ones(len(every), dtype=bool)
        if len(few) < len(every):
            kept[:: fitted.fidelity.stride(len(every))] = False
        chosen.append(kept)
    return chosen


def _limits_broken(
    constraints: Constraints, trained: Simulation, row: int, at_current: Mapping[str, float], factor: float
) -> tuple[str, ...]:
    """Evaluation sets on which a measured candidate loses more than is allowed, now or in the stage.

    Now: against the current model on the same sequences. In the stage: what the law foretells of the mixture in use (`at_current`), whose
    probe is the first row, and `factor` times what the candidate's probe is worse than that one.
    """
    broken = []
    for m, limit in constraints.max_loss.items():
        e = trained.metrics.index(m)
        now, got = float(trained.baseline[e]), float(trained.losses[row, e])
        allowed = limit * now / constraints.current_loss.get(m, now)
        staged = at_current[m] + factor * (got - float(trained.losses[0, e]))
        if got > allowed or staged > limit:
            broken.append(m)
    return tuple(broken)


def _trained(context: MethodContext, rows: dict[str, FloatArray], domains: tuple[str, ...]) -> Simulation:
    """A probe on each row of shares, evaluated; one of the design is found, if its shares are the same to the last bit."""
    design = ProbeDesign(tuple(rows), domains, np.stack(list(rows.values())))
    points = [InterpolationWeights(design.probes, row) for row in np.eye(len(rows))]
    return context.simulate(design, points, label="verification")


def _between_probes(fit: LawFit, count: int) -> FloatArray:
    """Standard deviation of one probe's losses by seed and order of the data, (E,) nats, as the law leaves it at the probes' ends.

    What all `count` probes have in common there (the law foretells their course too low or too high) changes no comparison of two.
    """
    rest = fit.losses[:count] - fit.fitted[:count]
    return np.asarray(np.std(rest, axis=0, ddof=1))
