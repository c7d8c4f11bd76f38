"""RegMix (arXiv 2407.01492): a swarm of small models, boosted trees from mixture to loss, the mean of the mixtures predicted best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opmix.methods.swarm.runs import aim, aimed, check_settings, generator, proxy_model, settings_of, swarm, trial_rows
from opmix.methods.swarm.trees import BoostedTrees, left_out_ranks
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.mixing_method import DecisionProblem, Proposal
from opmix.protocols.trials import Start, TrialRunner


@dataclass(frozen=True, kw_only=True)
class RegMix:
    """The method; "paper" in the fields' notes is the paper or its code (sail-sg/regmix).

    Assumed: without targets, what counts is the mean loss over all domains, each with trees of its own (the paper's is the loss on one,
    Pile-CC, as it stands for what users want). Trees grow their full number; the paper's notebook stops them early on the runs that it
    then scores.
    """

    runs: int = 64
    """Proxy models. Paper: 512, a thousandth of the target's size each, which together cost 2 % of it; ours are not that much smaller."""
    proxy_share: float = 0.04
    """Tokens of a proxy run, of the stage's. Paper: 1B of 25B."""
    start: Start = "scratch"
    """Paper: pretraining, so from scratch; `current` for later stages."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Of the stage's architecture, what is smaller in a proxy. Paper: 1M parameters for 1B."""
    temperature: float = 0.5
    """Exponent on the sizes of domains in the centre of the swarm. Paper: 0.5."""
    min_strength: float = 0.1
    """Smallest concentration of the swarm. Paper: 0.1."""
    max_strength: float = 5.0
    """Largest. Paper: 5."""
    minimum: float = 2e-4
    """Smallest share. Paper: 2e-4."""
    max_usage: float = 15.0
    """Largest share of a domain, in its shares by size. Paper: 15."""
    simulated: int = 100_000
    """Mixtures predicted. Paper: 100,000."""
    top_k: int = 128
    """Best predicted mixtures that are averaged. Paper: 128."""
    trees: int = 1000
    """Paper: 1000."""
    learning_rate: float = 0.01
    """Paper: 0.01."""
    min_leaf: int = 5
    """Paper: LightGBM's 20, which learns nothing from 64 runs in folds of five."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("runs", "simulated", "top_k", "trees", "min_leaf"),
            shares=("proxy_share", "temperature"),
            positive=("min_strength", "max_strength", "minimum", "max_usage", "learning_rate"),
        )

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem, rng = context.problem, generator(context.problem, 1)
        mixtures = [Mixture(problem.domains, row) for row in self._swarm(problem, rng)]
        proxy = proxy_model(context, self.proxy_share, self.start, self.architecture)
        trials = context.train(mixtures, proxy, label="regmix")
        trees, aimed_at = self._trees, aim(context, trials)
        counted = np.flatnonzero(aimed_at.weights(len(trials.metrics)))  # trees of no other set would change the answer
        losses, metrics = trials.losses[:, counted], tuple(trials.metrics[e] for e in counted)
        fitted = trees.fit(trials.shares, losses, seed=problem.seed)
        candidates = rng.dirichlet(np.maximum(problem.by_size.weights, 1e-3), self.simulated)
        every = np.tile(trials.baseline, (len(candidates), 1))
        every[:, counted] = fitted.predict(candidates)
        predicted = aimed(every, aimed_at)
        best = np.argsort(predicted, kind="stable")[: self.top_k]
        mixture = Mixture(problem.domains, candidates[best].mean(axis=0))
        left_out = trees.left_out(trials.shares, losses, seed=problem.seed)
        return Proposal(
            mixture=mixture,
            evidence={
                "settings": settings_of(self),
                "runs": trial_rows(trials),
                "left_out_spearman": left_out_ranks(losses, left_out, metrics),
                "predicted": dict(zip(metrics, map(float, fitted.predict(mixture.weights[None])[0]), strict=True)),
                "best_predicted": {
                    "mean": float(predicted[best].mean()),
                    "spread": np.std(candidates[best], axis=0).tolist(),
                },
            },
        )

    @property
    def _trees(self) -> BoostedTrees:
        return BoostedTrees(trees=self.trees, learning_rate=self.learning_rate, min_leaf=self.min_leaf)

    def _swarm(self, problem: DecisionProblem, rng: np.random.Generator) -> FloatArray:
        sizes = problem.by_size.weights
        tempered = sizes**self.temperature
        return swarm(
            tempered / tempered.sum(),
            self.runs,
            rng,
            strengths=(self.min_strength, self.max_strength),
            minimum=self.minimum,
            ceilings=np.minimum(self.max_usage * sizes, 1.0),
        )
