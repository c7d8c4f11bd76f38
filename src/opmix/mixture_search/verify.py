"""`opmix verify`: train adapters on the proposed mixture itself, hold them against the simulation, and say what the error can cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixing.paired import loss_difference_error, objective_error, objective_values
from opmix.mixing.solver import solve
from opmix.mixing.verification import (
    DirectPoint,
    Measured,
    curvature,
    extend,
    padded,
    sentences,
    weights_for,
)
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.full_check import full_check
from opmix.mixture_search.refine import refined
from opmix.mixture_search.reload import LoadedSearch, among, configuration_of, load_search, reference_of
from opmix.progress import Progress, Silent
from opmix.results.verification import MeasuredMixture, VerificationFile, VerifiedPoint
from opmix.runs.ranks import refuse_ranks
from opmix.runs.store import RunStore

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.training.factory import TrainerFactory

PROPOSAL = "proposal"
KL_SEQUENCES = 16
"""Held-out sequences a domain for the divergence of predictions: it needs both models' logits and is far less noisy than losses."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What direct training says of a finished search."""

    metrics: tuple[str, ...]
    points: tuple[DirectPoint, ...]
    """The first is the proposal."""
    measured: Measured
    tolerance: float
    sentences: tuple[str, ...]
    curvature: Mapping[str, float]
    flops: float
    full: Mapping[str, Any] | None = None
    refinement: Mapping[str, Any] | None = None
    run: Path = field(default_factory=Path)

    @property
    def matters(self) -> bool:
        """Whether the error can cost more than the decision counts as noise."""
        return self.measured.regret_bound > self.tolerance

    def file(self) -> VerificationFile:
        """Return it as `verification.json` keeps it."""
        measured = self.measured
        return VerificationFile(
            metrics=self.metrics,
            sentence=" ".join(self.sentences),
            matters=self.matters,
            regret_bound=measured.regret_bound,
            tolerance=self.tolerance,
            rank_agreement=measured.rank_agreement,
            points=tuple(VerifiedPoint(**p.json(self.metrics)) for p in self.points),
            measured=tuple(
                MeasuredMixture(name=n, direct=float(d), law=float(w), standard_error=float(e))
                for n, d, w, e in zip(measured.names, measured.direct, measured.law, measured.errors, strict=True)
            ),
            curvature=dict(self.curvature),
            flops=self.flops,
            full=self.full,
            refinement=self.refinement,
        )

    def json(self) -> dict[str, Any]:
        """The content of `verification.json`."""
        return self.file().json()


def verify_run(
    folder: str | Path,
    *,
    points: int = 0,
    full: bool = False,
    refine: bool = False,
    max_rounds: int = 3,
    model: Any = None,
    tokenizer: Any = None,
    base: Path | None = None,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify a run folder of `opmix search`; writes `verification.json` and the report again.

    Args:
        folder: The run folder.
        points: Further mixtures to train adapters on, drawn from the optimum's posterior and between the alternatives.
        full: Also train the whole model, as long as a probe, on the proposal and the mixture in use.
        refine: While the error matters, make the directly trained adapter a probe and solve again.
        max_rounds: Of refining.
        model: The model the search was given as an object; None: loaded by its name.
        tokenizer: With a model object.
        base: Folder that relative paths of the configuration start from; None: as recorded.
        make_trainer: As for the search.
        progress: Shows what is going on.

    Raises:
        StoreError: No finished search there.
        ConfigError: The search had a model object, and none is given.
        OpMixError: As a search.
    """
    folder = Path(folder)
    refuse_ranks("`opmix verify`", "start it without torchrun")
    config, recorded = configuration_of(folder, model)
    with RunStore(folder) as store:
        context = SearchContext(config, base or recorded, store, progress or Silent(), make_trainer)
        context.prepare(model, tokenizer)
        found = load_search(context)
        chosen = {PROPOSAL: found.proposal.verdict.optimum.mixture, **further_mixtures(found, points)}
        made = replace(verify(found, chosen), run=folder)
        if full:
            made = replace(made, full=full_check(found))
        if refine:
            made = replace(
                made, refinement=refined(found, made.points[0], made.measured, made.tolerance, max_rounds=max_rounds)
            )
        made.file().write(folder)
    from opmix.report import write_report

    write_report(folder)
    return made


def further_mixtures(found: LoadedSearch, count: int) -> dict[str, Mixture]:
    """Mixtures that could have been chosen: the law's alternatives first, then optima of its posterior draws."""
    verdict, names = found.proposal.verdict, found.context.names
    taken = [verdict.optimum.mixture.weights, *found.design.probes.R]
    chosen: dict[str, Mixture] = {}
    for alternative in verdict.alternatives:
        new = len(chosen) < count and alternative.name != PROPOSAL
        if new and alternative.feasible and not among(alternative.mixture.weights, taken):
            chosen[alternative.name] = alternative.mixture
            taken.append(alternative.mixture.weights)
    rng = np.random.default_rng([found.context.config.seed, 7])
    for index in rng.permutation(len(verdict.optima.optima)):
        if len(chosen) >= count:
            break
        drawn = verdict.optima.optima[index]
        if not among(drawn, taken):
            chosen[f"draw-{len(chosen) + 1}"] = Mixture(names, drawn)
            taken.append(drawn)
    return chosen


def verify(found: LoadedSearch, chosen: Mapping[str, Mixture]) -> Verification:
    """Train an adapter on each mixture and compare."""
    context, design, simulated = found.context, found.design, found.simulated
    settings = found.proposal.verdict.settings
    names, mixtures = list(chosen), list(chosen.values())
    weights = [weights_for(design.probes, m.weights) for m in mixtures]
    extended = extend(design.probes, names, mixtures)
    single = [InterpolationWeights(extended.probes, row) for row in np.eye(len(extended.probes))]
    proxies = [padded(w, extended) for w in weights]
    direct = single[len(design.probes.probes) :]
    before = context.ledger.total("flops")
    made = context.simulate(extended, [*direct, *proxies], label="verify", fidelity=simulated.fidelity)
    cost = context.ledger.total("flops") - before
    kl = _divergences(found, extended, direct, proxies)
    law = found.proposal.fit.law
    points = tuple(
        DirectPoint(
            name=name,
            mixture=dict(mixture),
            reached=dict(design.probes.mixture_of(w)),
            weights=dict(w),
            direct=made.losses[i],
            proxy=made.losses[len(names) + i],
            law=law.predict(mixture.weights)[0],
            error=loss_difference_error(made.nll, made.tokens, i, len(names) + i),
            kl=kl[i],
        )
        for i, (name, mixture, w) in enumerate(zip(names, mixtures, weights, strict=True))
    )
    measured = measure(found, points, [n[: len(names)] for n in made.nll])
    verdict = found.proposal.verdict
    tolerance = max(verdict.decision_settings.min_gain, verdict.decision.noise)
    said = sentences(points[0], measured, settings, reference=reference_of(found), tolerance=tolerance)
    below = curvature(
        np.array([w.weights for w in weights]), made.losses[len(names) :], simulated.losses[: len(design.probes.probes)]
    )
    return Verification(
        metrics=simulated.metrics,
        points=points,
        measured=measured,
        tolerance=tolerance,
        sentences=said,
        curvature=dict(zip(simulated.metrics, map(float, below[0]), strict=True)),
        flops=cost,
    )


def measure(found: LoadedSearch, points: Sequence[DirectPoint], nll: Sequence[FloatArray]) -> Measured:
    """The given mixtures and the design's own probes that the law was fitted to, against the law. `nll`: of the points, (N, S_e) a set."""
    design, simulated, proposal = found.design, found.simulated, found.proposal
    verdict, law = proposal.verdict, proposal.fit.law
    own = [i for i, kind in enumerate(design.kinds) if kind == "probe" and design.fitted[i]]
    losses = np.concatenate([np.stack([p.direct for p in points]), simulated.losses[own]])
    mixtures = np.concatenate([np.array([list(p.mixture.values()) for p in points]), design.mixtures[own]])
    rows = [np.concatenate([n, s[own]]) for n, s in zip(nll, simulated.nll, strict=True)]
    apart = [loss_difference_error(rows, simulated.tokens, 0, q) for q in range(len(losses))]
    values = objective_values(law.predict(mixtures), verdict.settings)
    lowest = solve(
        law, coordinates=design.coordinates, settings=replace(verdict.settings, kl=0.0), constraints=verdict.constraints
    ).mixture
    floor = float(objective_values(law.predict(lowest.weights), verdict.settings)[0])
    return Measured(
        names=(*(p.name for p in points), *(f"probe {design.probes.probes[i]}" for i in own)),
        direct=objective_values(losses, verdict.settings),
        law=values,
        errors=np.array([objective_error(e, verdict.settings) for e in apart]),
        law_gap=max(0.0, float(values[0]) - floor),
    )


def _divergences(
    found: LoadedSearch,
    design: ProbeDesign,
    direct: Sequence[InterpolationWeights],
    proxies: Sequence[InterpolationWeights],
) -> FloatArray:
    """KL(direct || proxy) of every pair, (N, E); kept in the run folder."""
    context, fidelity = found.context, found.simulated.fidelity
    session = context.session

    def work() -> dict[str, Any]:
        from opmix.probes.evaluation import predictive_kl

        with session.proxies(design, fidelity.steps) as simulated:
            few = [h.first(KL_SEQUENCES) for h in session.held_out]
            with context.progress.task("divergence of predictions", len(direct)) as advance:
                rows = []
                for a, b in zip(direct, proxies, strict=True):
                    first, second = (partial(simulated.at_vector, w.weights) for w in (a, b))
                    rows.append(predictive_kl(first, second, few, batch_tokens=session.evaluator.batch_tokens))
                    advance(len(rows), len(direct))
        return {"kl": rows}

    inputs = {
        "probes": {p: dict(design.row(p)) for p in design.probes},
        "settings": session.settings.of_a_run(),
        "seed": session.seed,
        "data": session.data_fingerprint,
        "points": [w.weights for w in (*direct, *proxies)],
        "sequences": KL_SEQUENCES,
        **({} if fidelity.steps is None else {"at": fidelity.steps}),
    }
    result, _ = context.store.step("verify-divergence", inputs, work)
    return np.array(result["kl"], dtype=np.float64)
