"""CLIMB-style search (arXiv 2504.13161): train a few mixtures, predict many, train some of the best predicted, and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.errors import ConfigError
from opmix.methods.swarm.runs import aim, aimed, check_settings, generator, proxy_model, settings_of, trial_rows
from opmix.methods.swarm.trees import BoostedTrees, FittedTrees, left_out_ranks
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import Start, TrialRunner


@dataclass(frozen=True, kw_only=True)
class Climb:
    """The iterative search. Embedding, clustering and filtering of documents, the paper's first half, are left out: domains are given.

    A pool of mixtures is drawn once. The first proxies are trained on some of it; then, each time, trees rank what was not trained
    on, all but the best are pruned, and the next proxies are drawn from these. The mixture predicted best at the end wins.

    Assumed: how many predicted mixtures survive, the pool's size and concentration, and that mixtures which trees cannot tell apart are
    averaged. The paper stops trees early on a validation set; two dozen runs have none to spare, so that they grow their full number.
    """

    runs: tuple[int, ...] = (16, 8, 4)
    """Proxies of each iteration. Paper: 64, 32, 16, each a third of the target's size; the ratio 4 : 2 : 1 is kept."""
    proxy_share: float = 0.1
    """Tokens of a proxy run, of the stage's. Paper: 40B of 400B."""
    start: Start = "current"
    """Paper: proxies that were pretrained and go on."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """With `scratch`, what is smaller in a proxy. Paper: 62M to 350M parameters for 1B."""
    pool: int = 10_000
    """Mixtures that are predicted. Assumed."""
    concentration: float = 1.0
    """Of the pool's Dirichlet distribution around shares by size, a domain on average. Assumed (paper: "based on token counts")."""
    survivors: float = 0.01
    """Part of the pool that is not pruned. Assumed (paper: "top N")."""
    trees: int = 1000
    """Paper: at most 1000, stopped early."""
    learning_rate: float = 0.01
    """Paper: not told."""
    depth: int = 4
    """Paper: 4."""
    min_leaf: int = 5
    """Paper: 5."""
    l2: float = 1.0
    """Paper: L1 and L2, values not told."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("pool", "trees", "depth", "min_leaf"),
            shares=("proxy_share", "survivors"),
            positive=("concentration", "learning_rate"),
        )
        object.__setattr__(self, "runs", tuple(self.runs))
        if not self.runs or min(self.runs) < 1 or sum(self.runs) > self.pool:
            raise ConfigError(
                f"runs: {list(self.runs)}; expected at least one whole number >= 1, {self.pool} (pool) in all at most"
            )

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        stage, rng = context.problem, generator(context.problem, 5)
        proxy = proxy_model(context, self.proxy_share, self.start, self.architecture)
        sizes = stage.by_size.weights
        pool = rng.dirichlet(np.maximum(self.concentration * len(sizes) * sizes, 1e-3), self.pool)
        trained: list[int] = []
        losses: FloatArray = np.empty((0, 1))
        fitted: FittedTrees | None = None
        record: list[dict[str, Any]] = []
        for number, count in enumerate(self.runs, 1):
            chosen = self._chosen(pool, trained, fitted, count, rng)
            mixtures = [Mixture(stage.domains, pool[i]) for i in chosen]
            trials = context.train(mixtures, proxy, label=f"climb-{number}")
            trained += chosen.tolist()
            losses = np.vstack([losses, aimed(trials.losses, aim(context, trials))[:, None]])
            record += trial_rows(trials, iteration=number)
            fitted = self._trees.fit(pool[trained], losses, seed=stage.seed)
        predicted = fitted.predict(pool)[:, 0] if fitted is not None else np.zeros(len(pool))
        tied = np.flatnonzero(predicted <= predicted.min() + 1e-12)
        left_out = self._trees.left_out(pool[trained], losses, seed=stage.seed)
        return Proposal(
            mixture=Mixture(stage.domains, pool[tied].mean(axis=0)),
            evidence={
                "settings": settings_of(self),
                "runs": record,
                "predicted_mean": float(predicted.min()),
                "tied": len(tied),
                "left_out_spearman": left_out_ranks(losses, left_out, ("mean",))["mean"],
            },
        )

    @property
    def _trees(self) -> BoostedTrees:
        return BoostedTrees(
            trees=self.trees, learning_rate=self.learning_rate, depth=self.depth, min_leaf=self.min_leaf, l2=self.l2
        )

    def _chosen(
        self, pool: FloatArray, trained: list[int], fitted: FittedTrees | None, count: int, rng: np.random.Generator
    ) -> npt.NDArray[np.intp]:
        """What to train on next: anything at first, then some of the untrained mixtures that are predicted best."""
        untrained = np.setdiff1d(np.arange(len(pool)), trained)
        if fitted is not None:
            ranked = untrained[np.argsort(fitted.predict(pool[untrained])[:, 0], kind="stable")]
            untrained = ranked[: max(round(self.survivors * len(pool)), count)]
        return rng.choice(untrained, count, replace=False)
