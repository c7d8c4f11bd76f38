"""What decision, solver, report and methods need from a mixing law: losses of evaluation sets as convex functions of a mixture.

Two laws implement it: `mixing.law.LogLinearLaw` and `mixing.effective_tokens.EffectiveTokensLaw`.
Shape letters: D domains, E evaluation sets, M mixtures, B posterior draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from opmix.mixing.mixture import FloatArray


@dataclass(frozen=True)
class Cone:
    """Three affine forms `constant + matrix @ v` that lie in a cone; v is `(p, u, w)`: mixture, varying losses, auxiliary variables."""

    matrix: FloatArray  # (3, D + U + A)
    constant: FloatArray  # (3,)
    power: float | None = None
    """None: exponential, `y exp(x / y) <= z`. A number in (0, 1): power, `x^power y^(1 - power) >= |z|`."""


@dataclass(frozen=True)
class ConicForm:
    """`u_k >= varying loss k of the law at p`, written as cones and linear rows over `v = (p, u, w)`."""

    cones: tuple[Cone, ...]
    auxiliary: int = 0
    rows: FloatArray | None = None  # (R, D + U + A)
    bounds: FloatArray | None = None  # (R,); rows @ v <= bounds


class MixingLaw(Protocol):
    """Losses in nats per token, convex in the mixture: `constant + varying(p)`."""

    @property
    def metrics(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def domains(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def formula(self) -> str:
        """The loss of evaluation set e in one line."""
        ...

    @property
    def constant(self) -> FloatArray:
        """What no mixture changes, (E,); left out of a mean objective."""
        ...

    def varying(self, mixtures: FloatArray) -> FloatArray:
        """Losses less `constant`, (M, E), at mixtures (M, D)."""
        ...

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """Losses, (M, E), at mixtures (M, D)."""
        ...

    def gradient(self, mixture: FloatArray) -> FloatArray:
        """Slope of each loss by each share, (E, D), at one mixture (D,)."""
        ...

    def conic(self, metrics: Sequence[int]) -> ConicForm:
        """The chosen evaluation sets' varying losses for a conic solver."""
        ...

    def json(self, metric: int) -> dict[str, Any]:
        """Parameters of one evaluation set; `kind` names the law (absent: log-linear)."""
        ...


class LawDraws(Protocol):
    """Posterior draws of a law."""

    @property
    def metrics(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def domains(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def ceiling(self) -> FloatArray:
        """No prediction exceeds it, (E,)."""
        ...

    @property
    def scale(self) -> FloatArray:
        """What each draw takes a foretold gain to be worth in the stage, over what is expected, (B,)."""
        ...

    def __len__(self) -> int: ...

    def law(self, index: int) -> MixingLaw:
        """One draw as a law."""
        ...

    def predict(self, mixtures: FloatArray) -> FloatArray:
        """Losses, (B, M, E), of every draw at the same mixtures (M, D)."""
        ...

    def predict_each(self, mixtures: FloatArray) -> FloatArray:
        """Losses, (B, M, E), of every draw at mixtures of its own, (B, M, D)."""
        ...

    def take(self, index: Sequence[int] | Any) -> LawDraws:
        """Some of the draws."""
        ...

    def json(self) -> dict[str, Any]:
        """Parameters for `law_draws.json`."""
        ...


@dataclass(frozen=True)
class LawQuality:
    """How well one evaluation set's law holds. Losses in nats per token."""

    huber: float
    rmse: float
    loo_rmse: float
    spearman: float
    loo_spearman: float


class LawFit(Protocol):
    """A fitted law with everything needed to judge it and to draw from its posterior."""

    @property
    def law(self) -> MixingLaw: ...  # noqa: D102
    @property
    def quality(self) -> tuple[LawQuality, ...]: ...  # noqa: D102
    @property
    def mixtures(self) -> FloatArray:
        """What the points were trained on, or stand for, (M, D)."""
        ...

    @property
    def losses(self) -> FloatArray:
        """Observed at the points, (M, E)."""
        ...

    @property
    def fitted(self) -> FloatArray:
        """The law at the points, (M, E)."""
        ...

    @property
    def residuals(self) -> FloatArray:
        """Observed minus left-one-out prediction, (M, E)."""
        ...

    @property
    def misfit(self) -> FloatArray:
        """What predictions at new mixtures are off by besides what draws of the law show, (M, E)."""
        ...

    def most(self, objective: Callable[[FloatArray], FloatArray]) -> float:
        """Largest gain of an objective of losses, (M, E) to (M,), that the points bear out, nats."""
        ...

    def draws(self, *, num_draws: int = 200, seed: int = 0, noise: FloatArray | None = None) -> LawDraws:
        """Posterior draws; `noise`: change of the losses by drawing other held-out sequences, (B, M, E)."""
        ...

    def exact(self) -> LawFit:
        """The same law as if it had met every point: its draws vary by evaluation noise alone."""
        ...

    @property
    def interference(self) -> FloatArray | None:
        """What averaging adapters costs, nats per unit of interference, (E,); None: the law has no such term."""
        ...

    @property
    def rank(self) -> int:
        """How many directions of mixtures the points can tell apart."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the fit, for `mixture.json`."""
        ...
