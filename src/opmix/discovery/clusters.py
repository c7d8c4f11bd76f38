"""Mini-batch k-means on unit points, the number of clusters by silhouette, and names by telling words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.discovery.features import Points, unit
from opmix.scaffold.layout import domain_names

SILHOUETTE_SAMPLE = 2000
MIN_DOCUMENTS = 20
"""Sampled documents that the smallest cluster must have for its number of clusters to be chosen."""
RESTARTS = 8
"""Whole runs of k-means: single ones end in optima of different quality."""
TERMS = 6
_NAME_TERMS = 3


@dataclass(frozen=True)
class Clusters:
    """Centres of a clustering."""

    centres: npt.NDArray[np.float64]
    """(K, d)"""
    labels: npt.NDArray[np.int64]
    """(n,), of the sample."""
    silhouette: float
    """Mean over documents of (b - a) / max(a, b), a and b the mean cosine distances to the own and to the nearest other
    cluster (Rousseeuw 1987): 1 for clusters far apart, 0 where a document could as well belong to the next."""

    def assign(self, points: Points) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The nearest centre of every point, (n,), and the cosine similarity to it, (n,)."""
        distances = np.sum(self.centres**2, axis=1) - 2 * points @ self.centres.T
        labels = distances.argmin(axis=1)
        similarity = np.sum(points * unit(self.centres)[labels], axis=1)
        return labels.astype(np.int64), similarity


def cluster(points: Points, number: int, seed: int) -> Clusters:
    """The best of several mini-batch k-means runs, by the mean squared distance to the centres.

    Args:
        points: (n, d), the sample.
        number: K.
        seed: Of the starts and batches, and of the documents the silhouette is taken on.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import silhouette_score

    runs = []
    for start in np.random.default_rng(seed).integers(1 << 31, size=RESTARTS):
        kmeans = MiniBatchKMeans(number, random_state=int(start), n_init=3, batch_size=2048, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer distinct points than clusters: seen in the sizes below
            runs.append(kmeans.fit(points))
    fitted = min(runs, key=lambda run: run.inertia_)
    found = Clusters(np.asarray(fitted.cluster_centers_, dtype=np.float64), np.zeros(0, np.int64), 0.0)
    labels, _ = found.assign(points)
    chosen = np.random.default_rng(seed).permutation(len(points))[:SILHOUETTE_SAMPLE]
    present = len(np.unique(labels[chosen]))
    score = silhouette_score(points[chosen], labels[chosen], metric="cosine") if 1 < present < len(chosen) else -1.0
    return Clusters(found.centres, labels, float(score))


def choose(points: Points, most: int, seed: int, told: Callable[[int, int], None]) -> tuple[Clusters, dict[int, float]]:
    """The clustering with the highest silhouette among 2 to `most` clusters, none of them tiny.

    Returns:
        It, and the silhouette of every number that was tried.
    """
    best: Clusters | None = None
    scores: dict[int, float] = {}
    numbers = range(2, max(2, min(most, len(points) // MIN_DOCUMENTS)) + 1)
    for done, number in enumerate(numbers, 1):
        found = cluster(points, number, seed)
        scores[number] = found.silhouette
        tiny = np.bincount(found.labels, minlength=number).min() < min(MIN_DOCUMENTS, len(points) // 4)
        if best is None or (found.silhouette > best.silhouette and not tiny):
            best = found
        told(done, len(numbers))
    assert best is not None
    return best, scores


def telling_terms(
    matrix: Any, labels: npt.NDArray[np.int64], words: npt.NDArray[Any], number: int
) -> list[tuple[str, ...]]:
    """The words that set each cluster apart.

    A word scores m log(m / M): m its mean TF-IDF in the cluster, M in all documents. It must be both frequent there and rare
    elsewhere.

    Args:
        matrix: Sparse TF-IDF of the sample, (n, words).
        labels: (n,)
        words: (words,)
        number: K.
    """
    overall = np.asarray(matrix.mean(axis=0)).ravel()
    terms = []
    for label in range(number):
        rows = np.flatnonzero(labels == label)
        inside = np.asarray(matrix[rows].mean(axis=0)).ravel() if len(rows) else np.zeros_like(overall)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(inside > 0, inside * np.log(inside / overall), -np.inf)
        best = np.argsort(-score, kind="stable")[:TERMS]
        terms.append(tuple(str(words[i]) for i in best if score[i] > 0))
    return terms


def cluster_names(terms: Sequence[tuple[str, ...]]) -> list[str]:
    """A valid, distinct domain name for each cluster: its first three terms.

    Examples:
        >>> cluster_names([("unto", "shall", "lord", "thou"), ()])
        ['unto-shall-lord', 'cluster-2']
    """
    labels = [f"{'-'.join(each[:_NAME_TERMS]) or f'cluster-{i}'}\0{i}" for i, each in enumerate(terms, 1)]
    plain = [label.partition("\0")[0] for label in labels]
    # `domain_names` keeps one name for each distinct label; like labels are told apart by their number.
    distinct = [p if plain.index(p) == i else f"{p}-{i + 1}" for i, p in enumerate(plain)]
    names = domain_names(distinct)
    return [names[label] for label in distinct]
