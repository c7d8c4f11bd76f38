"""What a search comes to before anything has confirmed it: solve, score the alternatives, keep or move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opmix.mixing.decision import decide
from opmix.mixing.design import StageDesign, new_domains
from opmix.mixing.mixture import FloatArray
from opmix.mixing.table import ProxyTable
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import LawProposal, MethodContext, Simulation


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """Design, simulation and what the law says of it: a proposal that nothing has confirmed yet."""

    design: StageDesign
    simulated: Simulation
    proposal: LawProposal
    noise: FloatArray  # (B, M, E) nats, what other held-out sequences would change


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
    problem = context.problem
    baseline = dict(zip(table.metrics, map(float, simulated.baseline), strict=True))
    settings = context.solve_settings(simulated.baseline, table.metrics, simulated=simulated)
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
        safe_limits=True,
        measured={n: losses for n, m in candidates.items() if (losses := table.measured(m)) is not None},
    )
    proposal = LawProposal(
        mixture=verdict.mixture, table=table, fit=fit, verdict=verdict, baseline=baseline, check=check
    )
    return SearchOutcome(design=design, simulated=simulated, proposal=proposal, noise=noise)
