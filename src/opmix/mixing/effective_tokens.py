r"""A mixing law in effective tokens: loss_e(p) = base_e - b_e log(1 + sum_d worth_ed x_d^rho), x_d the tokens of domain d.

`worth_ed` is what a unit of domain d's tokens adds to what the model already has for evaluation set e; `rho <= 1` makes the
returns within one domain diminish. Tokens seen again count less (Muennighoff et al., arXiv 2305.16264). The loss is minus the
logarithm of a concave function, so convex in p, and conic: power cones for `x^rho`, exponential cones for the logarithm and
for repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.protocols.law import Cone, ConicForm

REPETITION_DECAY = 15.4
"""Repetitions after which another is worth 1/e of a new token; R* of arXiv 2305.16264, section 5."""


@dataclass(frozen=True)
class Tokens:
    """From shares of a stage to effective tokens per domain, in units of the longest probe."""

    stage: float
    """Tokens of the stage the law is asked about, in units."""
    unique: FloatArray  # (D,) different tokens of each domain, in units; inf: never repeated
    decay: float = REPETITION_DECAY

    def effective(self, shares: FloatArray) -> FloatArray:
        """`min(N, U) + U R* (1 - exp(-max(N - U, 0) / (U R*)))` of `N = stage * share`, any shape (..., D)."""
        seen = self.stage * np.maximum(shares, 0.0)
        finite = np.where(np.isfinite(self.unique), self.unique, 1.0)
        room = np.maximum(finite * self.decay, 1e-300)
        again = np.where(np.isfinite(self.unique), np.maximum(seen - finite, 0.0), 0.0)
        return np.where(np.isfinite(self.unique), np.minimum(seen, finite), seen) - room * np.expm1(-again / room)

    def slope(self, shares: FloatArray) -> FloatArray:
        """Derivative of `effective` by the share, (..., D)."""
        seen = self.stage * np.maximum(shares, 0.0)
        finite = np.where(np.isfinite(self.unique), self.unique, 1.0)
        again = np.where(np.isfinite(self.unique), np.maximum(seen - finite, 0.0), 0.0)
        return self.stage * np.exp(-again / np.maximum(finite * self.decay, 1e-300))

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """Which domains can run out, (D,)."""
        return np.asarray(self.unique < self.stage)


@dataclass(frozen=True)
class EffectiveTokensLaw:
    """Parameters of E evaluation sets over D domains. Losses in nats per token; see the module."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    base: FloatArray  # (E,) loss before any of these tokens
    b: FloatArray  # (E,) >= 0; nats that e-fold effective tokens are worth in the stage
    worth: FloatArray  # (E, D) >= 0
    rho: float
    tokens: Tokens
    formula: ClassVar[str] = "base_e - b_e log(1 + sum_d worth_ed tokens_d(p)^rho)"

    @property
    def constant(self) -> FloatArray:
        """See `MixingLaw`."""
        return self.base

    def varying(self, mixtures: FloatArray) -> FloatArray:
        """`-b log(1 + sum worth x^rho)`, (M, E)."""
        powers = self.tokens.effective(np.atleast_2d(mixtures)) ** self.rho
        return -self.b * np.log1p(powers @ self.worth.T)

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """See `MixingLaw`."""
        return self.base + self.varying(mixtures)

    def gradient(self, mixture: FloatArray) -> FloatArray:
        """See `MixingLaw`; shares below 1e-12 count as that, where the slope of `x^rho` would be infinite."""
        shares = np.maximum(mixture, 1e-12)
        x = self.tokens.effective(shares)
        rise = self.rho * x ** (self.rho - 1) * self.tokens.slope(shares)
        have = 1 + self.worth @ x**self.rho
        return -(self.b / have)[:, None] * self.worth * rise

    def conic(self, metrics: Sequence[int]) -> ConicForm:
        """`z_k <= 1 + worth_k . w`, `w_d <= v_d^rho`, `v_d <= effective tokens`, `exp(-u_k / b_k) <= z_k`.

        Effective tokens are split into first sight, `f_d <= U_d`, and repetition: `v_d <= f_d + R (1 - g_d)`,
        `g_d >= exp(-(N_d - f_d) / R)` with `R = U_d R*`. First sight is worth more, so the optimum fills it first.
        """
        D, U = len(self.domains), len(metrics)
        again = [int(d) for d in np.flatnonzero(self.tokens.repeated)]
        straight = self.rho >= 1.0
        names = [("w", d) for d in range(D)] + [(kind, d) for d in again for kind in ("v", "f", "g")]
        column = {name: D + U + i for i, name in enumerate(names)}
        size = D + U + len(names)
        cones, rows, bounds = [], [], []

        def affine(**terms: float) -> FloatArray:
            row = np.zeros(size)
            for key, value in terms.items():
                kind, index = key.split("_")
                at = {"p": int(index), "u": D + int(index)}.get(kind)
                row[column[kind, int(index)] if at is None else at] = value
            return row

        def below(bound: float, **terms: float) -> None:
            rows.append(affine(**terms))
            bounds.append(bound)

        none = np.zeros(size)
        for d in range(D):
            have = affine(**{f"v_{d}": 1.0}) if d in again else affine(**{f"p_{d}": self.tokens.stage})
            if straight:
                rows.append(affine(**{f"w_{d}": 1.0}) - have)
                bounds.append(0.0)
            else:
                triple = np.array([have, none, affine(**{f"w_{d}": 1.0})])
                cones.append(Cone(triple, np.array([0.0, 1.0, 0.0]), self.rho))
        for d in again:
            unique = float(self.tokens.unique[d])
            room = max(unique * self.tokens.decay, 1e-9)
            below(unique, **{f"f_{d}": 1.0})
            below(0.0, **{f"f_{d}": -1.0})
            below(0.0, **{f"f_{d}": 1.0, f"p_{d}": -self.tokens.stage})
            below(room, **{f"v_{d}": 1.0, f"f_{d}": -1.0, f"g_{d}": room})
            rise = affine(**{f"f_{d}": 1 / room, f"p_{d}": -self.tokens.stage / room})
            cones.append(Cone(np.array([rise, none, affine(**{f"g_{d}": 1.0})]), np.array([0.0, 1.0, 0.0])))
        for k, e in enumerate(metrics):
            gained = none.copy()
            gained[D + U : D + U + D] = self.worth[e]
            scale = max(float(self.b[e]), 1e-9)
            triple = np.array([affine(**{f"u_{k}": -1 / scale}), none, gained])
            cones.append(Cone(triple, np.array([0.0, 1.0, 1.0])))
        return ConicForm(tuple(cones), len(names), np.array(rows).reshape(-1, size), np.array(bounds))

    def json(self, metric: int) -> dict[str, Any]:
        """See `MixingLaw`."""
        return {
            "kind": "effective_tokens",
            "base": self.base[metric],
            "b": self.b[metric],
            "worth": dict(zip(self.domains, self.worth[metric], strict=True)),
            "rho": self.rho,
            "tokens": self.tokens.stage,
            "unique": {d: float(u) for d, u in zip(self.domains, self.tokens.unique, strict=True) if np.isfinite(u)},
            "repetition_decay": self.tokens.decay,
        }


@dataclass(frozen=True)
class EffectiveTokensDraws:
    """Posterior draws; see `LawDraws`."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    base: FloatArray  # (B, E)
    b: FloatArray  # (B, E)
    worth: FloatArray  # (B, E, D)
    rho: FloatArray  # (B,)
    tokens: Tokens
    scale: FloatArray  # (B,) drawn over expected discrepancy

    @property
    def ceiling(self) -> FloatArray:
        """The loss before any tokens: more of them cannot hurt."""
        return self.base.max(axis=0)

    def __len__(self) -> int:
        return len(self.rho)

    def law(self, index: int) -> EffectiveTokensLaw:
        """See `LawDraws`."""
        return EffectiveTokensLaw(
            self.metrics,
            self.domains,
            self.base[index],
            self.b[index],
            self.worth[index],
            float(self.rho[index]),
            self.tokens,
        )

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """See `LawDraws`."""
        return self.predict_each(np.broadcast_to(np.atleast_2d(mixtures), (len(self), *np.atleast_2d(mixtures).shape)))

    def predict_each(self, mixtures: FloatArray) -> FloatArray:
        """See `LawDraws`."""
        powers = self.tokens.effective(mixtures) ** self.rho[:, None, None]
        gained = np.einsum("bmd,bed->bme", powers, self.worth)
        return self.base[:, None, :] - self.b[:, None, :] * np.log1p(gained)

    def take(self, index: Any) -> EffectiveTokensDraws:
        """See `LawDraws`."""
        chosen = {name: getattr(self, name)[index] for name in ("base", "b", "worth", "rho", "scale")}
        return replace(self, **chosen)

    def json(self) -> dict[str, Any]:
        """See `LawDraws`."""
        return {
            "kind": "effective_tokens",
            "metrics": self.metrics,
            "domains": self.domains,
            "base": self.base,
            "b": self.b,
            "worth": self.worth,
            "rho": self.rho,
            "tokens": self.tokens.stage,
            "unique": self.tokens.unique,
            "repetition_decay": self.tokens.decay,
        }
