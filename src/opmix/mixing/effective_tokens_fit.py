"""From losses of probes, each at its own number of tokens, to a law in effective tokens with its posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opmix.errors import LawError
from opmix.mixing.effective_tokens import REPETITION_DECAY, EffectiveTokensDraws, EffectiveTokensLaw, Tokens
from opmix.mixing.hierarchy import RHO, Hierarchy, Points, batch_of, fit_hierarchy, minimise
from opmix.mixing.mixture import FloatArray
from opmix.mixing.numerics import distinct_rows, rank_correlation
from opmix.protocols.law import LawQuality

SHARED_BY_LOOKS = 0.1
"""Share of a probe's noise variance that all looks at it have in common; 0.00, 0.06 and 0.31 were measured between half of the steps
and all of them, at a constant rate (docs/experiments.md)."""


@dataclass(frozen=True)
class Discrepancy:
    """A nat that probes foretell between a mixture and the one in use is worth `factor` nats of the stage, give or take."""

    factor: float = 1.0
    spread: float = 0.0
    """Standard deviation of the factor's logarithm."""


@dataclass(frozen=True, kw_only=True)
class EffectiveTokensFit:
    """See `LawFit`. M points: looks at probes, and the model before any probe."""

    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    mixtures: FloatArray  # (M, D)
    points: Points
    hierarchy: Hierarchy
    tokens: Tokens
    unit: float
    """Tokens of the longest probe."""
    discrepancy: Discrepancy
    loo: FloatArray  # (M, E) each point predicted by the law fitted without its probe
    noisy: bool = True
    interference: None = None
    reference: FloatArray | None = None
    """Shares (D,) at which the discrepancy changes nothing; None: at no tokens at all."""

    @property
    def law(self) -> EffectiveTokensLaw:
        """At the stage's own length and scale, at the likeliest `rho`."""
        best = self.hierarchy.best
        return self._draws(self.hierarchy.theta[best][None], self.hierarchy.rho[best : best + 1], np.ones(1)).law(0)

    @property
    def losses(self) -> FloatArray:
        """See `LawFit`."""
        return self.points.y

    @property
    def fitted(self) -> FloatArray:
        """The law at the points' own tokens and scale, (M, E)."""
        return self._predicted(self.hierarchy.best)

    @property
    def residuals(self) -> FloatArray:
        """Observed minus left-one-out prediction, (M, E)."""
        return self.losses - self.loo

    @property
    def misfit(self) -> FloatArray:
        """None beyond the draws, which hold the noise that was found: zeros, (M, E)."""
        return np.zeros_like(self.losses)

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of one probe's losses, as the fit found it, (E,) nats."""
        return self.hierarchy.hyper.noise[self.hierarchy.best]

    @property
    def rank(self) -> int:
        """See `LawFit`."""
        return int(np.linalg.matrix_rank(self.mixtures, tol=1e-5))

    @property
    def quality(self) -> tuple[LawQuality, ...]:
        """See `LawFit`."""
        fitted, rest = self.fitted, self.losses - self.fitted
        out = self.losses - self.loo
        return tuple(
            LawQuality(
                huber=float(np.mean(0.5 * rest[:, e] ** 2)),
                rmse=float(np.sqrt(np.mean(rest[:, e] ** 2))),
                loo_rmse=float(np.sqrt(np.mean(out[:, e] ** 2))),
                spearman=rank_correlation(fitted[:, e], self.losses[:, e]),
                loo_spearman=rank_correlation(self.loo[:, e], self.losses[:, e]),
            )
            for e in range(len(self.metrics))
        )

    @property
    def settings(self) -> dict[str, Any]:
        """See `LawFit`."""
        best, weights = self.hierarchy.best, self.hierarchy.weights
        return {
            "law": "effective_tokens",
            "rho": float(self.hierarchy.rho[best]),
            "rho_posterior": {f"{r:g}": float(w) for r, w in zip(self.hierarchy.rho, weights, strict=True)},
            "tokens_of_probe": self.unit,
            "tokens_of_stage": self.tokens.stage * self.unit,
            "discrepancy": {"factor": self.discrepancy.factor, "spread": self.discrepancy.spread},
            "noise": dict(zip(self.metrics, self.noise, strict=True)),
        }

    def most(self, objective: Callable[[FloatArray], FloatArray]) -> float:
        """No bound: a logarithm cannot run away."""
        return float("inf")

    def exact(self) -> EffectiveTokensFit:
        """See `LawFit`."""
        return replace(self, noisy=False)

    def draws(self, *, num_draws: int = 200, seed: int = 0, noise: FloatArray | None = None) -> EffectiveTokensDraws:
        """Posterior draws: losses and priors are disturbed by their own noise, and everything is refitted.

        A probe's noise (seed, order of the data) is partly common to its looks and to all evaluation sets. `rho` is
        drawn from its posterior.

        Args:
            num_draws: B.
            seed: Of the disturbances.
            noise: Evaluation noise, (B, M, E) in nats: losses on resampled sequences minus losses.
        """
        rng, E = np.random.default_rng(seed), len(self.metrics)
        weights = self.hierarchy.weights if self.noisy else np.eye(len(self.hierarchy.rho))[self.hierarchy.best]
        s = rng.choice(len(weights), size=num_draws, p=weights)
        which = np.stack([np.repeat(s, E), np.tile(np.arange(E), num_draws)], axis=1)
        batch = batch_of(self.points, self.hierarchy.hyper, self.hierarchy.rho, which)
        fitted = np.stack([self._predicted(k) for k in range(len(weights))])[s]  # (B, M, E)
        if self.noisy:
            fitted = fitted + self._disturbances(rng, num_draws) * self.hierarchy.hyper.noise[s][:, None, :]
            free = (batch.spread < 100) & (batch.spread > 1e-3)
            moved = batch.mean + np.where(free, batch.spread, 0.0) * rng.standard_normal(batch.mean.shape)
            batch = replace(batch, mean=moved)
        if noise is not None:
            fitted = fitted + noise
        batch = replace(batch, y=fitted.transpose(0, 2, 1).reshape(num_draws * E, -1))
        theta, _ = minimise(batch, self.hierarchy.theta[which[:, 0], which[:, 1]], iterations=15, tolerance=1e-4)
        spread = self.discrepancy.spread if self.noisy else 0.0
        scale = np.exp(spread * rng.standard_normal(num_draws))
        return self._draws(theta.reshape(num_draws, E, -1), self.hierarchy.rho[s], scale)

    def _disturbances(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Unit normals (B, M, E), correlated within a probe's looks and across evaluation sets."""
        M, E = self.losses.shape
        rest = self.losses - self.fitted
        related = np.corrcoef(rest.T) if E > 1 and np.all(rest.std(axis=0) > 0) else np.eye(E)
        common = float(np.clip((related.sum() - E) / max(E * (E - 1), 1), 0.0, 0.9))
        _, row = np.unique(self.points.probe, return_inverse=True)
        P = int(row.max()) + 1

        def sets(size: int) -> FloatArray:
            all_sets, each = rng.standard_normal((count, size, 1)), rng.standard_normal((count, size, E))
            return np.sqrt(common) * all_sets + np.sqrt(1 - common) * each

        return np.sqrt(SHARED_BY_LOOKS) * sets(P)[:, row] + np.sqrt(1 - SHARED_BY_LOOKS) * sets(M)

    def _predicted(self, setting: int) -> FloatArray:
        E = len(self.metrics)
        which = np.stack([np.full(E, setting), np.arange(E)], axis=1)
        batch = batch_of(self.points, self.hierarchy.hyper, self.hierarchy.rho, which)
        return batch.evaluate(self.hierarchy.theta[setting])[0].T

    def _draws(self, theta: FloatArray, rho: FloatArray, scale: FloatArray) -> EffectiveTokensDraws:
        worth = np.exp(np.clip(theta[..., 2:3] + theta[..., 3:], -40.0, 20.0))
        told, factor = np.exp(theta[..., 1]), self.discrepancy.factor * scale[:, None]
        base = theta[..., 0]
        if self.reference is not None:
            powers = self.tokens.effective(self.reference) ** rho[:, None]
            base = base + (factor - 1) * told * np.log1p(np.einsum("bd,bed->be", powers, worth))
        return EffectiveTokensDraws(self.metrics, self.domains, base, factor * told, worth, rho, self.tokens, scale)


def fit_effective_tokens(
    mixtures: FloatArray,
    tokens: npt.ArrayLike,
    losses: FloatArray,
    *,
    domains: Sequence[str],
    metrics: Sequence[str],
    probes: Sequence[str],
    stage_tokens: float,
    own: Mapping[str, str] | None = None,
    unique_tokens: Mapping[str, float] | None = None,
    repetition_decay: float = REPETITION_DECAY,
    noise: npt.ArrayLike | None = None,
    discrepancy: Discrepancy | None = None,
    reference: npt.ArrayLike | None = None,
    rho: Sequence[float] = RHO,
) -> EffectiveTokensFit:
    """Fit the law to trained probes; every look at a probe is a point at its own number of tokens.

    Args:
        mixtures: Shares each point was trained on, (M, D); of a point of 0 tokens they do not count.
        tokens: Tokens each point was trained on, (M,); 0: the model before.
        losses: Held-out losses in nats per token, (M, E).
        domains: D names.
        metrics: E names.
        probes: Which probe each point is of, M names; looks at one probe share its name.
        stage_tokens: Tokens of the stage the law is asked about.
        own: Training domain of an evaluation set; None: the domain of the same name. A set without one is a target.
        unique_tokens: Different tokens of domains that may have to repeat themselves in the stage.
        repetition_decay: R* of arXiv 2305.16264.
        noise: Noise known beforehand, nats, one or (E,): standard error of a loss, spread between seeds.
        discrepancy: Between the scale of probes and that of the stage.
        reference: Shares of the mixture in use, (D,): the discrepancy is one of differences to it, and says nothing of how far all
            mixtures fall together (measured: docs/experiments.md); None: it multiplies the whole fall.
        rho: Values to weigh.

    Raises:
        LawError: Shapes that do not fit, numbers that are not finite, fewer than two probes of different mixtures.

    References:
        Issue 13; Muennighoff et al., arXiv 2305.16264, for repeated tokens.
    """
    mixtures, losses, trained = np.asarray(mixtures, float), np.asarray(losses, float), np.asarray(tokens, float)
    _check(mixtures, trained, losses, len(domains), len(metrics), len(probes))
    unit = float(trained.max())
    own = {m: m for m in metrics} if own is None else own
    columns = [list(domains).index(own[m]) if own.get(m) in domains else -1 for m in metrics]
    known = np.broadcast_to(1e-3 if noise is None else np.asarray(noise, float), (len(metrics),))
    names = list(dict.fromkeys(probes))
    points = Points(
        trained[:, None] / unit * mixtures,
        losses,
        np.array([names.index(p) for p in probes]),
        np.array(columns),
        np.maximum(known, 1e-6),
    )
    unique = np.array([(unique_tokens or {}).get(d, np.inf) for d in domains]) / unit
    hierarchy = fit_hierarchy(points, rho)
    return EffectiveTokensFit(
        metrics=tuple(metrics),
        domains=tuple(domains),
        mixtures=mixtures,
        points=points,
        hierarchy=hierarchy,
        tokens=Tokens(stage_tokens / unit, unique, repetition_decay),
        unit=unit,
        discrepancy=discrepancy or Discrepancy(),
        loo=_left_out(points, hierarchy),
        reference=None if reference is None else np.asarray(reference, float),
    )


def _check(mixtures: FloatArray, tokens: FloatArray, losses: FloatArray, D: int, E: int, probes: int) -> None:
    M = len(losses)
    if mixtures.shape != (M, D) or losses.shape != (M, E) or tokens.shape != (M,) or probes != M:
        raise LawError(
            f"mixtures {mixtures.shape}, tokens {tokens.shape}, losses {losses.shape} and {probes} probes do not fit "
            f"{D} domains and {E} metrics; expected (M, D), (M,), (M, E) and M"
        )
    for name, table in (("mixtures", mixtures), ("tokens", tokens), ("losses", losses)):
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            raise LawError(f"{name}: point {bad[0][0]} is {table[tuple(bad[0])]}; expected finite numbers")
    distinct = distinct_rows(mixtures[tokens > 0])
    if np.any(tokens < 0) or distinct < 2:
        raise LawError(f"{distinct} different mixtures trained on; expected at least two, and tokens >= 0")


def _left_out(points: Points, hierarchy: Hierarchy) -> FloatArray:
    """Each point predicted by the law fitted without its probe, priors as found, (M, E)."""
    E, best, names = points.y.shape[1], hierarchy.best, np.unique(points.probe)
    which = np.array([(best, e) for _ in names for e in range(E)])
    batch = batch_of(points, hierarchy.hyper, hierarchy.rho, which)
    left = np.repeat(points.probe[None] == names[:, None], E, axis=0)
    batch = replace(batch, scale=np.where(left, 1e6, batch.scale))
    theta, _ = minimise(batch, hierarchy.theta[best][which[:, 1]], iterations=30, tolerance=1e-5)
    predicted = batch.evaluate(theta)[0].reshape(len(names), E, -1)
    return predicted[np.searchsorted(names, points.probe), :, np.arange(len(points.probe))]
