"""What a design of mixtures covers, and how wrong a law is near the mixtures that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import median

STRETCH = 1.5
"""How much farther from the centre than the farthest point, in the design's own ellipsoid, a mixture may lie."""
_OFF_SPAN = 0.02
NEAREST = 30
"""Points nearest to a mixture that tell how wrong the law is there."""
_OUTLIER = 10.0
"""Robust standard deviations beyond which a residual is a run's own fault, not the law's."""


@dataclass(frozen=True)
class Cover:
    """The ellipsoid around a design; beyond it a law extrapolates.

    References:
        Cook, Influential observations in linear regression (1979): the region of leverages up to the design's largest.
    """

    design: FloatArray  # (M, D)

    @cached_property
    def _ellipsoid(self) -> tuple[FloatArray, FloatArray, FloatArray, float]:
        """Centre (D,), axes (K, D), their lengths (K,) and how far the farthest point lies from the centre in them."""
        center = self.design.mean(axis=0)
        points, singular, axes = np.linalg.svd(self.design - center, full_matrices=False)
        kept = singular > 1e-5 * max(float(singular[0]), 1e-300)
        return center, axes[kept], singular[kept], float(np.sqrt((points[:, kept] ** 2).sum(axis=1).max()))

    def outside(self, mixture: FloatArray) -> float:
        """How far a mixture (D,) lies outside, as half the sum of the absolute share differences to the nearest point; 0: covered."""
        center, axes, scale, widest = self._ellipsoid
        off = mixture - center
        along = axes @ off
        radius = np.sqrt(np.sum((along / scale) ** 2))
        beside = float(np.abs(off - along @ axes).sum() / 2)
        if beside <= _OFF_SPAN and radius <= STRETCH * widest:
            return 0.0
        return float(np.abs(self.design - mixture).sum(axis=1).min() / 2)


def outliers(residuals: FloatArray) -> npt.NDArray[np.intp]:
    """Points whose residual is not of the others' kind (a diverged run), at most a tenth of all; (N,) indices."""
    if len(residuals) < 8:
        return np.zeros(0, dtype=np.intp)
    size = np.abs(residuals - median(residuals))
    far = np.flatnonzero(size > _OUTLIER * 1.4826 * median(size))
    return far if len(far) <= len(residuals) / 10 else np.zeros(0, dtype=np.intp)


def misfit_near(mixture: FloatArray, design: FloatArray, residuals: FloatArray) -> float:
    """Root mean square of the residuals (M,) of the points nearest to a mixture, outliers left out, nats."""
    used = np.delete(np.arange(len(residuals)), outliers(residuals))
    if len(used) > NEAREST:
        used = np.sort(used[np.argsort(np.abs(design[used] - mixture).sum(axis=1), kind="stable")[:NEAREST]])
    return float(np.sqrt(np.mean(residuals[used] ** 2)))
