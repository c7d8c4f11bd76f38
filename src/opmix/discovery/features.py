"""Documents as points: TF-IDF words compressed by a truncated SVD, or a small model's hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opmix.errors import ConfigError, DataError

Points = npt.NDArray[np.float64]
"""(n, d), rows of length one: cosine similarity is their product."""

DIMENSIONS = 64
VOCABULARY = 50_000
_WORD = r"(?u)\b[^\W\d_][^\W_]+\b"
"""At least two letters or digits, the first a letter; `_` divides, so identifiers give their parts."""


class Features(Protocol):
    """Turns texts into points."""

    def fit(self, texts: Sequence[str]) -> Points:
        """Learn from a sample and return its points, (n, d)."""

    def transform(self, texts: Sequence[str]) -> Points:
        """Points of further texts, (n, d)."""


class Lexicon:
    """Words and how telling they are: sublinear TF-IDF."""

    def __init__(self) -> None:
        require_sklearn()
        self._vectorizer: Any = None

    def fit(self, texts: Sequence[str]) -> Any:
        """Learn the vocabulary from a sample.

        Returns:
            A sparse matrix, (documents, words), rows of length one.

        Raises:
            DataError: The texts share no words.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            min_df=3 if len(texts) >= 200 else 2,
            max_df=0.5,
            max_features=VOCABULARY,
            token_pattern=_WORD,
        )
        try:
            return self._vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(
                f"the {len(texts)} sampled documents have no word in common that is not in half of them ({error}); "
                "expected running "
                "text with spaces between words; for other text give a model with --embed"
            ) from error

    def transform(self, texts: Sequence[str]) -> Any:
        """The same for further texts; unknown words are passed over."""
        return self._vectorizer.transform(texts)

    @property
    def words(self) -> npt.NDArray[Any]:
        """The vocabulary, (words,)."""
        return np.asarray(self._vectorizer.get_feature_names_out())


class TfidfFeatures:
    """TF-IDF words, compressed to 64 dimensions."""

    def __init__(self, lexicon: Lexicon, matrix: Any, seed: int) -> None:
        """Args: the fitted lexicon, its matrix for the sample, and a seed of the SVD."""
        self._lexicon, self._matrix, self._seed = lexicon, matrix, seed
        self._svd: Any = None

    def fit(self, texts: Sequence[str]) -> Points:
        """See `Features`; the sample's matrix is the one given."""
        from sklearn.decomposition import TruncatedSVD

        dimensions = max(1, min(DIMENSIONS, min(self._matrix.shape) - 1))
        self._svd = TruncatedSVD(dimensions, random_state=self._seed)
        return unit(self._svd.fit_transform(self._matrix))

    def transform(self, texts: Sequence[str]) -> Points:
        """See `Features`."""
        return unit(self._svd.transform(self._lexicon.transform(texts)))


def unit(points: npt.NDArray[Any]) -> Points:
    """Rows scaled to length one; a row of zeros (a document without a known word) stays."""
    points = np.asarray(points, dtype=np.float64)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1.0)


def require_sklearn() -> None:
    """Raises: ConfigError: scikit-learn is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "discovering domains needs scikit-learn, which is not installed; pip install scikit-learn"
        ) from error
