"""Boosted regression trees from mixtures to losses, the predictor of RegMix and CLIMB.

Both papers use LightGBM. scikit-learn's histogram trees are the same algorithm, are here already (for `opmix discover`) and predict
RegMix's published runs as well (benchmarks/evidence/regmix_swarms.py), so that no further dependency is needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import rank_correlation


@dataclass(frozen=True, kw_only=True)
class BoostedTrees:
    """How trees are grown. The defaults are RegMix's, but for the size of leaves.

    LightGBM's own defaults (at least 20 runs a leaf) cannot split a swarm of less than 40 runs: its predictions are constant then.
    """

    trees: int = 1000
    learning_rate: float = 0.01
    leaves: int = 16
    min_leaf: int = 5
    """Runs in a leaf, at least; a quarter of the runs where these are fewer than four leaves' worth."""
    depth: int | None = None
    l2: float = 0.0

    def fit(self, shares: FloatArray, losses: FloatArray, *, seed: int = 0) -> FittedTrees:
        """One ensemble per column.

        Args:
            shares: Mixtures, (M, D).
            losses: What they led to, (M, E).
            seed: Of scikit-learn's; ensembles on fewer than 200,000 runs are the same for all.

        Raises:
            ConfigError: scikit-learn is not installed.
        """
        kind = _regressor()
        from threadpoolctl import threadpool_limits  # scikit-learn rests on it

        # A swarm has tens to hundreds of rows: threads only wait for each other, on a busy machine for most of the time.
        with threadpool_limits(1, user_api="openmp"):
            models = tuple(
                kind(
                    max_iter=self.trees,
                    learning_rate=self.learning_rate,
                    max_leaf_nodes=self.leaves,
                    max_depth=self.depth,
                    min_samples_leaf=min(self.min_leaf, max(len(shares) // 4, 1)),
                    l2_regularization=self.l2,
                    early_stopping=False,
                    random_state=seed,
                ).fit(shares, column)
                for column in losses.T
            )
        return FittedTrees(models)

    def left_out(self, shares: FloatArray, losses: FloatArray, *, folds: int = 5, seed: int = 0) -> FloatArray:
        """Every run predicted by trees grown without its fold, (M, E)."""
        order = np.random.default_rng(seed).permutation(len(shares))
        predicted = np.empty_like(losses)
        for held in np.array_split(order, min(folds, len(shares))):
            kept = np.setdiff1d(order, held)
            predicted[held] = self.fit(shares[kept], losses[kept], seed=seed).predict(shares[held])
        return predicted


@dataclass(frozen=True)
class FittedTrees:
    """Ensembles, one per column of losses."""

    models: tuple[Any, ...]

    def predict(self, shares: FloatArray) -> FloatArray:
        """Losses (N, E) at mixtures (N, D)."""
        return np.stack([model.predict(shares) for model in self.models], axis=1)


def left_out_ranks(losses: FloatArray, predicted: FloatArray, metrics: tuple[str, ...]) -> dict[str, float]:
    """Spearman's rho of predictions with losses (M, E): of each metric, and of their mean."""
    found = {m: rank_correlation(predicted[:, e], losses[:, e]) for e, m in enumerate(metrics)}
    return {**found, "mean of metrics": rank_correlation(predicted.mean(axis=1), losses.mean(axis=1))}


def _regressor() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as error:
        raise ConfigError(
            "boosted trees (regmix, climb) need scikit-learn, which is not installed; pip install scikit-learn"
        ) from error
    return HistGradientBoostingRegressor
