"""Run folders of searches for targets, for the report: a known world, a real decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixture_search.payoff import payoff_of
from opmix.protocols.mixing_method import LawProposal
from opmix.results.draws import LawDrawsFile
from opmix.results.loss_limits import KEY as LIMITS
from opmix.results.loss_limits import limits_json
from opmix.results.mixture import MixtureFile
from opmix.results.payoff import KEY, Silent


def aimed(num_domains, num_targets, *, seed=0, limited=False):
    """A proposal of a law over domains and targets, each target like two of the domains; the objective is the targets'."""
    rng = np.random.default_rng(seed)
    domains = tuple(f"domain_{i}" for i in range(num_domains))
    targets = tuple(f"target_{i}" for i in range(num_targets))
    t = rng.normal(0, 0.05, (num_domains + num_targets, num_domains))
    t[:num_domains] -= np.eye(num_domains)
    for e in range(num_targets):
        t[num_domains + e, [e % num_domains, (3 * e + 1) % num_domains]] -= (1.2, 0.5)
    points = rng.dirichlet(np.ones(num_domains), max(24, 4 * num_domains))
    losses = 2.0 + np.exp(points @ t.T) + rng.normal(0, 0.002, (len(points), len(t)))
    fit = fit_law(points, losses, domains=domains, metrics=(*domains, *targets))
    omega = np.array([0.0] * num_domains + [1.0] * num_targets)
    uniform = Mixture.uniform(domains)
    now = dict(zip(fit.law.metrics, map(float, fit.law.predict(uniform.weights)[0]), strict=True))
    verdict = decide(
        fit,
        candidates={"current": uniform},
        reference="current",
        settings=SolveSettings(objective="weighted", omega=omega, kl=0.01),
        constraints=Constraints(max_loss={d: 1.02 * now[d] for d in domains}, current_loss={d: now[d] for d in domains})
        if limited
        else None,
        safe_limits=True,
        decision=DecisionSettings(draws=32),
    )
    proposal = LawProposal(mixture=verdict.mixture, table=None, fit=fit, verdict=verdict, check={}, baseline=now)
    return proposal, targets


def write_aimed(
    folder: Path, num_domains: int, num_targets: int, *, silent: bool = False, limited: bool = False
) -> Path:
    """Its run folder, as a search leaves it."""
    proposal, targets = aimed(num_domains, num_targets, limited=limited)
    quiet = {targets[-1]: Silent(spread=0.001, noise=0.002)} if silent else {}
    told = payoff_of(proposal, targets, quiet)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {t: {"valid": {"tokens": 1, "bytes": 4, "documents": 1}} for t in targets}
    evidence = {KEY: told.json(), LIMITS: limits_json(proposal.verdict.limits(proposal.fit.law))}
    MixtureFile.of("search", proposal.fit, proposal.verdict, targets=counts, evidence=evidence).write(folder)
    LawDrawsFile.of(proposal.verdict.draws).write(folder)
    return folder
