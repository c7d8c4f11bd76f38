"""Data Mixing Laws (arXiv 2403.16952): short runs on halving shares, laws of their length and of the mixture, and the minimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from opmix.errors import ConfigError
from opmix.methods.swarm.runs import (
    aim,
    check_settings,
    generator,
    law_record,
    proxy_model,
    repetition_caps,
    settings_of,
    trial_rows,
)
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.solver import solve
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import Start, TrialModel, TrialRunner, Trials


@dataclass(frozen=True, kw_only=True)
class DataMixingLaws:
    r"""The method; "paper" in the fields' notes is the paper or its code (yegcjs/mixinglaws).

    The law, equation 7 (M4), is `L_i = c_i + k_i exp(sum_j t_ij r_j)`, k > 0. On the simplex `k` is one with a constant in every `t_ij`
    (`k exp(t . r) = exp((t + log k) . r)`), so this is `opmix.mixing.law` and `k` is reported as 1.

    Assumed: losses of domains are averaged with equal weights (explicit aggregation); starting shares are drawn in an order of domains
    that changes, so that it is not always the same domain that gets what is left. Left out: the law of model sizes, as a runner has one
    size of proxy, and the boosted networks by which the paper's pipeline replaces its law for many domains.
    """

    runs: int = 20
    """Mixtures trained on. Paper: 20."""
    proxy_share: float = 0.3
    """Tokens of a run, of the stage's. Paper: 30B of 100B."""
    horizons: tuple[float, ...] = ()
    """Parts of a run, beside the whole, that the law of steps `L = E + B S^-beta` is fitted to, at least two; beta is shared by all.

    Empty: the law of mixtures is fitted to the runs as they end. Paper: nested, on losses along a run; here each part is a run of its
    own, and charged.
    """
    start: Start = "current"
    """Paper: both, from scratch and in continual pretraining."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """With `scratch`, what is smaller in a proxy. Paper: 70M to 410M parameters for 1B."""
    grid: float = 1 / 16
    """Shares are halved from the largest one down to this, then 0. Paper's code: 1/16."""
    max_epochs: float | None = 1.0
    """Repetition of a domain in the stage, at most; dropped where that leaves no mixture. Paper: data are not repeated."""
    huber_delta: float = 0.02
    """Paper's code: 0.01 to 0.05."""

    def __post_init__(self) -> None:
        check_settings(self, counts=("runs",), shares=("proxy_share", "grid"), positive=("max_epochs", "huber_delta"))
        object.__setattr__(self, "horizons", tuple(sorted(self.horizons)))
        if self.horizons and (len(set(self.horizons)) < 2 or not 0 < self.horizons[0] <= self.horizons[-1] < 1):
            raise ConfigError(
                f"horizons: {list(self.horizons)}; expected none, or at least two different ones in (0, 1)"
            )

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem = context.problem
        caps = repetition_caps(problem, self.max_epochs)
        largest = np.minimum([caps.token_caps(problem.domains).get(d, 1.0) for d in problem.domains], 1.0)
        mixtures = [
            Mixture(problem.domains, row)
            for row in halving_shares(largest, self.runs, self.grid, generator(problem, 3))
        ]
        proxy = proxy_model(context, self.proxy_share, self.start, self.architecture)
        whole = context.train(mixtures, proxy, label="mixing-laws")
        losses, steps = self._extrapolated(context, mixtures, proxy, whole)
        fit = fit_law(whole.shares, losses, domains=problem.domains, metrics=whole.metrics, delta=self.huber_delta)
        answer = solve(fit.law, settings=aim(context, whole), constraints=caps)
        return Proposal(
            mixture=answer.mixture,
            evidence={
                "settings": settings_of(self),
                "runs": trial_rows(whole),
                "step_law": steps,
                "law": law_record(fit),
                "objective": answer.objective,
                "optimality_gap": answer.gap,
                "repetition_capped": caps.budget is not None,
                "predicted": dict(
                    zip(whole.metrics, map(float, fit.law.predict(answer.mixture.weights[None])[0]), strict=True)
                ),
            },
        )

    def _extrapolated(
        self, context: TrialRunner, mixtures: Sequence[Mixture], proxy: TrialModel, whole: Trials
    ) -> tuple[FloatArray, dict[str, Any] | None]:
        """Losses (N, E) at the stage's length by the law of steps, and that law; as they are without horizons."""
        if not self.horizons:
            return whole.losses, None
        parts = [replace(proxy, tokens=max(round(h * proxy.tokens), 1)) for h in self.horizons]
        curves = [
            context.train(mixtures, part, label=f"mixing-laws-{number}").losses for number, part in enumerate(parts, 1)
        ]
        tokens = np.array([*(p.tokens for p in parts), proxy.tokens], dtype=np.float64)
        law = fit_steps(tokens, np.stack([*curves, whole.losses]))
        target = law.predict(float(context.problem.budget_tokens))
        return target, {"beta": law.beta, "rmse": law.rmse, "tokens": tokens.tolist(), "extrapolated": target.tolist()}


@dataclass(frozen=True)
class StepLaw:
    """`L = E + B S^-beta`, a curve for every mixture and metric, with one beta."""

    E: FloatArray  # (N, E) nats per token, at infinite length
    B: FloatArray  # (N, E)
    beta: float
    rmse: float

    def predict(self, tokens: float) -> FloatArray:
        """Losses, (N, E)."""
        return self.E + self.B * tokens**-self.beta


def fit_steps(tokens: FloatArray, losses: FloatArray) -> StepLaw:
    """Least squares: for a given beta the rest is linear, so only beta is searched.

    Args:
        tokens: Lengths, (H,), H >= 3.
        losses: At these, (H, N, E).

    References:
        Ye et al., section 4, and `tie_alpha="all"` of its code (a common exponent).
    """
    flat = losses.reshape(len(tokens), -1)
    scale = float(tokens.max())

    def solved(beta: float) -> tuple[FloatArray, float]:
        X = np.stack([np.ones(len(tokens)), (tokens / scale) ** -beta], axis=1)
        found = np.asarray(np.linalg.lstsq(X, flat, rcond=None)[0], dtype=np.float64)
        return found, float(np.sqrt(np.mean((X @ found - flat) ** 2)))

    beta = float(minimize_scalar(lambda b: solved(b)[1], bounds=(0.02, 2.0), method="bounded").x)
    (ends, drops), rmse = solved(beta)
    shape = losses.shape[1:]
    return StepLaw(ends.reshape(shape), drops.reshape(shape) * scale**beta, beta, rmse)


def halving_shares(largest: FloatArray, count: int, grid: float, rng: np.random.Generator) -> FloatArray:
    """Different mixtures of shares halved from the largest one, (N, D); the last domain of an order gets what is left.

    Args:
        largest: Of each domain, (D,), adding up to at least one.
        count: Mixtures wanted; fewer where there are not so many.
        grid: Smallest share beside 0, where `largest` is not smaller still.
        rng: Source of randomness.

    References:
        Ye et al., appendix on sampling proportions ("double-diminishing"), and `pipeline/find_opt.py`.
    """
    levels = []
    for top in largest:
        first = max(np.floor(top / grid) * grid, min(top, grid))
        levels.append([*(first / 2**s for s in range(64) if first / 2**s >= min(grid, first)), 0.0])
    found: dict[tuple[float, ...], None] = {}
    for _ in range(200 * count):
        order, row, left = rng.permutation(len(largest)), np.zeros(len(largest)), 1.0
        for position, d in enumerate(order[:-1]):
            later = float(largest[order[position + 1 :]].sum())
            fitting = [x for x in levels[d] if x <= left and left - x <= later + 1e-12]
            row[d] = rng.choice(fitting) if fitting else min(left, largest[d])
            left -= row[d]
        row[order[-1]] = max(left, 0.0)
        found.setdefault(tuple(np.round(row / row.sum(), 12)))
        if len(found) == count:
            break
    rows: FloatArray = np.array(list(found))
    return rows / rows.sum(axis=1, keepdims=True)
