r"""The log-linear law in coordinates whose optimum is not at the end of a curved valley.

`c` and the exponents move together: mixtures change losses little, so a law with a lower `c` and smaller exponents says almost the same,
and a straight step along that valley leaves it at once. Written as `loss = s + (exp(k Z w) - 1) / k`, with `s` fixed near the mean loss,
`w` is the slope, whatever `k` is, and `k` the curvature alone: `c = s - 1 / k`, `z = k w - log(k) one`, where `Z one = 1` because shares
add up to one. (It is the form of Box and Cox, 1964, read backwards.)

Shape letters as in `least_squares`: B laws, M points, K exponents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from opmix.mixing.least_squares import MAX_EXPONENT, Parameters
from opmix.mixing.mixture import FloatArray

_LEAST_GROWTH = 0.05
"""How near a refit's constant comes to `s`, in units of what separates the fitted law's from it."""


@dataclass(frozen=True)
class Told:
    """What laws say of the points, (B, M) each."""

    predicted: FloatArray
    growth: FloatArray  # k exp(Z z): slope of the loss by Z w
    bend: FloatArray  # slope of the loss by theta's k

    def take(self, rows: np.ndarray) -> Told:
        """Some of the laws."""
        return Told(self.predicted[rows], self.growth[rows], self.bend[rows])


@dataclass(frozen=True)
class CurvatureForm:
    """Theta of B laws, (B, 2 + K): curvature `k`, in units of `unit`, the covariate's factor, slopes `w`."""

    Z: FloatArray  # (M, K)
    v: FloatArray | None  # (M,)
    level: float  # s, nats
    one: FloatArray  # (K,)
    ones: FloatArray  # (M,) Z one: ones, but for directions too small to be told
    unit: float
    growth: float  # of the fitted law, s - c

    @classmethod
    def near(cls, Z: FloatArray, v: FloatArray | None, one: FloatArray, at: Parameters) -> CurvatureForm:
        """For laws near one that is fitted (a batch of one): where it is `s` on the geometric mean, `Z w` is small."""
        typical = float(np.exp(np.clip((at.z @ Z.T).mean(), -60.0, 60.0)))
        form = cls(Z, v, float(at.c[0]) + typical, one, Z @ one, 1.0, typical)
        told = form.told(form.theta(at))
        slopes = float((told.growth[0] ** 2 @ Z**2).max())
        size = float(np.sqrt((told.bend[0] @ told.bend[0]) / max(slopes, 1e-300)))
        return replace(form, unit=size if size > 0 else 1.0)

    def theta(self, params: Parameters) -> FloatArray:
        """Of laws; their constants are below `level`."""
        k = 1 / (self.level - params.c)
        w = (params.z + np.log(k)[:, None] * self.one) / k[:, None]
        return np.column_stack([k * self.unit, params.gamma, w])

    def parameters(self, theta: FloatArray) -> Parameters:
        """The laws."""
        k = theta[:, 0] / self.unit
        return Parameters(
            np.maximum(self.level - 1 / k, 0.0), k[:, None] * theta[:, 2:] - np.log(k)[:, None] * self.one, theta[:, 1]
        )

    def bounds(self, highest: FloatArray) -> tuple[float, FloatArray]:
        """Of the curvature, for constants from 0 to `highest` (B,)."""
        return self.unit / self.level, self.unit / np.maximum(self.level - highest, _LEAST_GROWTH * self.growth)

    def inside(self, theta: FloatArray, bounds: tuple[float, FloatArray]) -> FloatArray:
        """Curvatures within bounds, and exponents no larger than a law's may be."""
        theta[:, 0] = np.clip(theta[:, 0], *bounds)
        z = self.parameters(theta).z
        size = np.sqrt(np.einsum("bk,bk->b", z, z))
        far = np.flatnonzero(size > MAX_EXPONENT)
        if far.size:
            k = theta[far, :1] / self.unit
            theta[far, 2:] = (z[far] * (MAX_EXPONENT / size[far])[:, None] + np.log(k) * self.one) / k
        return theta

    def told(self, theta: FloatArray) -> Told:
        """Losses and their slopes by `k` at the points."""
        k = theta[:, :1] / self.unit
        along = theta[:, 2:] @ self.Z.T
        growth = np.exp(np.clip(k * along - np.log(k) * self.ones, -60.0, 60.0))
        predicted = (self.level - 1 / k) + growth
        if self.v is not None:
            predicted += theta[:, 1:2] * self.v
        along -= self.ones / k
        along *= growth
        along += 1 / k**2
        along /= self.unit
        growth *= k
        return Told(predicted, growth, along)

    def pulled(self, pull: FloatArray, told: Told) -> FloatArray:
        """`pull` (B, M) times the Jacobian of the losses by theta, (B, 2 + K)."""
        k_side = np.einsum("bm,bm->b", *np.broadcast_arrays(pull, told.bend))
        covariate = np.zeros(len(pull)) if self.v is None else pull @ self.v
        return np.column_stack([k_side, covariate, (pull * told.growth) @ self.Z])

    def jacobian(self, told: Told) -> FloatArray:
        """Of one law's losses by theta, (M, 2 + K)."""
        covariate = np.zeros(len(self.Z)) if self.v is None else self.v
        return np.column_stack([told.bend[0], covariate, told.growth[0, :, None] * self.Z])
