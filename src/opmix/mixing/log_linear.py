"""The log-linear law, `loss_e(p) = c_e + exp(t_e . p)`, and draws of it; see `mixing.law` for its fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.protocols.law import Cone, ConicForm


@dataclass(frozen=True)
class LogLinearLaw:
    r"""Fitted parameters of `loss_e(p) = c_e + exp(t_e . p)`.

    `c` is weakly identified (mixtures move losses little): it is a parameter of the curve, not an irreducible loss.
    """

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    c: FloatArray  # (E,) nats per token
    t: FloatArray  # (E, D)
    gamma: FloatArray  # (E,) nats per unit of interference; predictions are made at interference 0
    rank: int
    formula: ClassVar[str] = "c_e + exp(sum_d t_ed p_d)"

    @classmethod
    def flat(cls, names: tuple[str, ...]) -> LogLinearLaw:
        """A law that no mixture changes: what is left of a problem are its constraints."""
        size = len(names)
        return cls(names, names, np.zeros(size), np.zeros((size, size)), np.zeros(size), 1)

    def predict(self, mixtures: FloatArray, interference: FloatArray | None = None) -> FloatArray:
        """Losses in nats per token, (M, E), at mixtures (M, D).

        Args:
            mixtures: Shares per domain in the order of `domains`.
            interference: Of each point, (M,); None: 0, that is, as if trained jointly on the mixture.
        """
        # Far from every point a law may say anything; past e^50 it only says "far worse".
        losses = self.c + self.varying(mixtures)
        return losses if interference is None else losses + interference[:, None] * self.gamma

    @property
    def constant(self) -> FloatArray:
        """See `MixingLaw`."""
        return self.c

    def varying(self, mixtures: FloatArray) -> FloatArray:
        """`exp(t_e . p)`, (M, E)."""
        return np.exp(np.minimum(np.atleast_2d(mixtures) @ self.t.T, 50.0))

    def conic(self, metrics: Sequence[int]) -> ConicForm:
        """`exp(t_e . p) <= u_e`, one exponential cone each."""
        none, units = np.zeros(len(metrics)), np.eye(len(metrics))
        cones = []
        for k, e in enumerate(metrics):
            rows = [np.append(self.t[e], none), np.zeros(self.t.shape[1] + len(metrics))]
            rows.append(np.append(np.zeros(self.t.shape[1]), units[k]))
            cones.append(Cone(np.array(rows), np.array([0.0, 1.0, 0.0])))
        return ConicForm(tuple(cones))

    def json(self, metric: int) -> dict[str, Any]:
        """See `MixingLaw`."""
        exponents = dict(zip(self.domains, self.t[metric], strict=True))
        return {"c": self.c[metric], "t": exponents, "interference": self.gamma[metric]}

    def gradient(self, mixture: FloatArray) -> FloatArray:
        """Slope of each loss by each share, (E, D), at one mixture (D,)."""
        return np.exp(self.t @ mixture)[:, None] * self.t


@dataclass(frozen=True)
class LogLinearDraws:
    """Posterior draws of a law; B draws. See `LawDraws`."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    c: FloatArray  # (B, E)
    t: FloatArray  # (B, E, D)
    gamma: FloatArray  # (B, E)
    rank: int
    ceiling: FloatArray  # (E,) no prediction exceeds it: ten times the largest loss seen

    @property
    def scale(self) -> FloatArray:
        """Ones: proxies and stage are taken to agree."""
        return np.ones(len(self.c))

    def __len__(self) -> int:
        return len(self.c)

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """Losses in nats per token, (B, M, E), of every draw at the same mixtures (M, D)."""
        return self._losses(np.einsum("md,bed->bme", np.atleast_2d(mixtures), self.t))

    def predict_each(self, mixtures: FloatArray) -> FloatArray:
        """Losses in nats per token, (B, M, E), of every draw at its own mixtures (B, M, D)."""
        return self._losses(np.einsum("bad,bed->bae", mixtures, self.t))

    def _losses(self, exponent: FloatArray) -> FloatArray:
        # A draw may extrapolate absurdly where no point holds it; past the ceiling it only says "far worse".
        losses: FloatArray = np.minimum(self.c[:, None, :] + np.exp(np.minimum(exponent, 50.0)), self.ceiling)
        return losses

    def law(self, index: int) -> LogLinearLaw:
        """One draw as a law."""
        return LogLinearLaw(self.metrics, self.domains, self.c[index], self.t[index], self.gamma[index], self.rank)

    def take(self, index: Any) -> LogLinearDraws:
        """Some of the draws."""
        return replace(self, c=self.c[index], t=self.t[index], gamma=self.gamma[index])

    def json(self) -> dict[str, Any]:
        """See `LawDraws`."""
        return {"metrics": self.metrics, "domains": self.domains, "c": self.c, "t": self.t}
