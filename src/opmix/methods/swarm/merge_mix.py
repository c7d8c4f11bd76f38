"""MergeMix (arXiv 2601.17858): an expert per domain from one start, their weight averages as proxies of mixtures, a law, its minimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.methods.swarm.runs import aim, check_settings, generator, law_record, proxy_model, settings_of, trial_rows
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.solver import solve
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True, kw_only=True)
class MergeMix:
    """The method. `Theta(a) = Theta_base + sum_k a_k (Theta_k - Theta_base)` stands for the model trained on mixture `a`.

    Experts train in full from the current model (a shared start is the paper's condition: all else rests on them staying close). The
    paper keeps the learning rate constant; here it follows the proxies' schedule, the same for all methods of a comparison.

    Assumed: averages are drawn uniformly from the simplex; the surface fitted to them is the log-linear law, minimised exactly, on
    held-out losses (the paper's is fitted to benchmarks; no code is published). Experts alone are no points of the fit: nothing is
    averaged there, and laws fitted to them are worse inside (docs/experiments.md).
    """

    proxy_share: float = 0.2
    """Tokens of an expert, of the stage's. Paper: below 5B tokens; OP-Mix's version: 20 % of the steps."""
    points: int | None = None
    """Averages evaluated; None: 4 a domain, at least 12. OP-Mix's version: 12."""
    huber_delta: float = 0.02
    """Assumed; that of the other laws here."""

    def __post_init__(self) -> None:
        check_settings(self, counts=("points",), shares=("proxy_share",), positive=("huber_delta",))

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        stage, num = context.problem, len(context.problem.domains)
        points = self.points or max(4 * num, 12)
        weights = generator(stage, 4).dirichlet(np.ones(num), points)
        experts = [Mixture(stage.domains, row) for row in np.eye(num)]
        trials = context.average(
            experts, weights, proxy_model(context, self.proxy_share, "current", {}), label="merge-mix"
        )
        fit = fit_law(
            trials.shares, trials.losses, domains=stage.domains, metrics=trials.metrics, delta=self.huber_delta
        )
        answer = solve(fit.law, settings=aim(context, trials))
        return Proposal(
            mixture=answer.mixture,
            evidence={
                "settings": settings_of(self),
                "averages": trial_rows(trials),
                "law": law_record(fit),
                "objective": answer.objective,
                "optimality_gap": answer.gap,
                "predicted": dict(
                    zip(trials.metrics, map(float, fit.law.predict(answer.mixture.weights[None])[0]), strict=True)
                ),
            },
        )
