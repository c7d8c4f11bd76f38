"""Mixtures of experts' predictions stand for models trained on mixtures of data: MixMin and MDE.

A model trained on one domain is a good guess of what that domain teaches, and the mixture of such models' predictions,
`sum_k w_k P_k(token)`, one of what a mixture of domains would: convex in the weights, with no training beyond the experts and no
law. MixMin: Thudi et al., arXiv 2502.10510; MDE, mixtures of data experts: Belenki et al., arXiv 2502.15950.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opmix.errors import ConfigError
from opmix.methods.swarm.runs import settings_of
from opmix.mixing.design import coordinates_of
from opmix.mixing.mixture import FloatArray, Mixture, ProbeDesign
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner

_ROUNDS, _GAP = 2000, 1e-4


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The method: an expert per domain (the old mixture counts as one), and the weights at which their predictions are best.

    Experts are probes as the search's settings say. The papers train experts of their own, MixMin small ones from scratch, and MDE
    corrects the ensemble's losses by a regression on trained mixtures, which is left out.
    """

    pooled: bool = False
    """Every held-out token of the sets that count alike (MixMin's one target); False: the mean over sets, each by its weight (MDE)."""

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`.

        Raises:
            ConfigError: Nothing that counts has tokens to score (choice tasks have none).
        """
        problem = context.problem
        coordinates = coordinates_of(problem.domains, problem.old, problem.new)
        design = ProbeDesign(coordinates.names, problem.domains, coordinates.E)
        tables = context.token_losses(design, label="experts")
        omega = context.solve_settings(np.zeros(len(tables)), tuple(tables)).weights(len(tables))
        if self.pooled:
            omega = np.array([table.shape[1] * (w > 0) for table, w in zip(tables.values(), omega, strict=True)])
        if not np.sum(omega) > 0:
            raise ConfigError("targets: none that counts is text; an ensemble needs the probabilities of tokens")
        weights = best_weights(list(tables.values()), omega / np.sum(omega))
        mixture = Mixture(problem.domains, weights @ coordinates.E)
        rows = {
            "experts": np.eye(len(weights)),
            "optimum": weights[None],
            "even": np.full((1, len(weights)), 1 / len(weights)),
        }
        losses = {name: losses_at(tables, row).tolist() for name, row in rows.items()}
        experts = dict(zip(coordinates.names, weights.tolist(), strict=True))
        return Proposal(
            mixture=mixture,
            evidence={"settings": settings_of(self), "experts": experts, "metrics": list(tables), "losses": losses},
        )


def losses_at(tables: Mapping[str, FloatArray], weights: FloatArray) -> FloatArray:
    """`-mean log sum_k w_k P_k` of ensembles with weights (M, K), (M, E) nats per token."""
    return np.stack([-np.log(weights @ np.exp(-table)).mean(axis=1) for table in tables.values()], axis=1)


def best_weights(tables: Sequence[FloatArray], omega: FloatArray) -> FloatArray:
    """Weights (K,) on the simplex that minimise `sum_e omega_e loss_e`, within 1e-4 nats of the optimum.

    By EM for mixture weights; with `g_k = sum_e omega_e mean(P_k / mixture)`, the optimum is at most `log max_k g_k` lower.

    Args:
        tables: By evaluation set, nats of its tokens under each of K experts, (K, N_e).
        omega: Weights of the sets, (E,), with sum 1.
    """
    kept = [e for e in range(len(tables)) if omega[e] > 0]
    # Relative to the best expert of each token: probabilities may be far below the smallest float.
    ratios = [np.exp(tables[e].min(axis=0) - tables[e]) for e in kept]
    count = len(tables[0])
    weights = np.full(count, 1 / count)
    for _ in range(_ROUNDS):
        gains = sum(omega[e] * (p / (weights @ p)).mean(axis=1) for e, p in zip(kept, ratios, strict=True))
        weights = weights * gains
        weights = weights / weights.sum()
        if np.log(np.max(gains)) < _GAP:
            break
    return np.asarray(weights)
