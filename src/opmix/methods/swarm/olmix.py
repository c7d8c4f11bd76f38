"""Olmix (arXiv 2602.12237): a swarm of proxies around the sizes of domains, log-linear laws, a convex solve; old ratios are reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opmix.errors import InfeasibleError
from opmix.methods.swarm.runs import (
    aim,
    check_settings,
    generator,
    law_record,
    proxy_model,
    repetition_caps,
    settings_of,
    swarm,
    trial_rows,
)
from opmix.mixing.constraints import Constraints
from opmix.mixing.design import coordinates_of
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import Solution, solve
from opmix.protocols.law import MixingLaw
from opmix.protocols.mixing_method import DecisionProblem, Proposal
from opmix.protocols.trials import Start, TrialRunner


@dataclass(frozen=True, kw_only=True)
class Olmix:
    """The method; "paper" in the fields' notes is the paper or its code and configurations (allenai/olmix).

    Mixture reuse: where domains are new, the old ones keep their ratios to each other and count as one virtual domain, so that only its
    share and those of the new domains are searched. A stage's `new` names old domains to be searched again (the paper's partial reuse).
    """

    runs_per_coordinate: int = 4
    """Proxies for every domain, virtual ones included. Paper: a number proportional to domains; 128 for 24, 64 for 16."""
    proxy_share: float = 0.03
    """Tokens of a proxy run, of the stage's. Paper: 3B, taken here as of 100B."""
    start: Start = "scratch"
    """Paper: from scratch."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Of the stage's architecture, what is smaller in a proxy. Paper: 30M parameters for 1B; ranks suffer below 15M."""
    reuse: bool = True
    """Keep old ratios where domains are new. Off: the paper's full recomputation."""
    min_strength: float = 1.0
    """Smallest concentration of the swarm. Paper: 1."""
    max_strength: float = 20.0
    """Largest. Paper: 20."""
    minimum: float = 1e-4
    """Smallest share in the swarm. Paper: 1e-4."""
    huber_delta: float = 0.02
    """Paper's code: 0.02."""
    kl: float = 0.05
    """Pull towards the sizes of the coordinates. Paper: 0.05."""
    max_epochs: float | None = 4.0
    """Repetition of a domain in the stage, at most; dropped where that leaves no mixture. Paper: 4."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("runs_per_coordinate",),
            shares=("proxy_share",),
            positive=("min_strength", "max_strength", "minimum", "huber_delta", "max_epochs"),
        )

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem = context.problem
        coordinates = coordinates_of(problem.domains, problem.old, problem.new) if self.reuse else None
        coordinates = coordinates or Coordinates.identity(problem.domains)
        prior = prior_of(problem, coordinates)
        # A law over C coordinates has C + 1 parameters; one run more says something about its fit.
        runs = max(self.runs_per_coordinate * len(prior), len(prior) + 3)
        points = swarm(
            prior, runs, generator(problem, 2), strengths=(self.min_strength, self.max_strength), minimum=self.minimum
        )
        proxy = proxy_model(context, self.proxy_share, self.start, self.architecture)
        trials = context.train([coordinates.mixture(x) for x in points], proxy, label="olmix")
        fit = fit_law(
            trials.shares, trials.losses, domains=problem.domains, metrics=trials.metrics, delta=self.huber_delta
        )
        answer, capped = self._solved(
            fit.law, coordinates, replace(aim(context, trials), kl=self.kl, prior=coordinates.mixture(prior)), problem
        )
        return Proposal(
            mixture=answer.mixture,
            evidence={
                "settings": settings_of(self),
                "runs": trial_rows(trials),
                "law": law_record(fit),
                "coordinates": dict(zip(coordinates.names, map(float, answer.coordinates), strict=True)),
                "prior": dict(zip(coordinates.names, map(float, prior), strict=True)),
                "objective": answer.objective,
                "optimality_gap": answer.gap,
                "repetition_capped": capped,
                "predicted": dict(
                    zip(trials.metrics, map(float, fit.law.predict(answer.mixture.weights[None])[0]), strict=True)
                ),
            },
        )

    def _solved(
        self, law: MixingLaw, coordinates: Coordinates, settings: SolveSettings, problem: DecisionProblem
    ) -> tuple[Solution, bool]:
        """The optimum, and whether repetition was capped."""
        caps = repetition_caps(problem, self.max_epochs)
        try:
            answer = solve(law, coordinates=coordinates, settings=settings, constraints=caps)
        except InfeasibleError:  # frozen ratios can break a cap that free ones would not
            return solve(law, coordinates=coordinates, settings=settings, constraints=Constraints()), False
        return answer, caps.budget is not None


def prior_of(problem: DecisionProblem, coordinates: Coordinates) -> FloatArray:
    """Sizes of the coordinates, (C,): a virtual domain is as large as the domains in it, less those that are coordinates too."""
    sizes, alone = problem.by_size.weights, [d for d in coordinates.names if d in problem.domains]
    inside = [
        sum(
            s
            for d, s, e in zip(problem.domains, sizes, row, strict=True)
            if e > 0 and (name in alone or d not in alone)
        )
        for name, row in zip(coordinates.names, coordinates.E, strict=True)
    ]
    return np.array(inside) / np.sum(inside)
