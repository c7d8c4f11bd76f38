"""What mixtures of the trained probes' predictions would choose, beside the law: no law, no further training (MDE, arXiv 2502.15950)."""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix.methods.ensemble import best_weights, losses_at
from opmix.mixing.decision import Verdict
from opmix.mixing.mixture import Mixture, ProbeDesign
from opmix.protocols.mixing_method import MethodContext
from opmix.results.opinion import Opinion


def second_opinion(
    context: MethodContext, design: ProbeDesign, verdict: Verdict, metrics: tuple[str, ...], *, thinning: int
) -> Opinion | None:
    """The mixture at which the probes' predictions, mixed token by token, fit what the objective weighs; the KL and limits are left out.

    Args:
        context: Of the search; every `thinning`-th of its held-out sequences is read under every probe.
        design: Its probes, those of the search itself.
        verdict: What the law says.
        metrics: Evaluation sets in the order of the objective's weights.
        thinning: See `MethodContext.token_losses`.

    Returns:
        None where nothing that counts has tokens: questions alone.
    """
    tables = context.token_losses(design, label="second-opinion", thinning=thinning)
    weights = dict(zip(metrics, verdict.settings.weights(len(metrics)), strict=True))
    omega = np.array([weights[name] for name in tables])
    if not omega.sum() > 0:
        return None
    omega = omega / omega.sum()
    chosen = best_weights(list(tables.values()), omega)
    own = next(a.mixture for a in verdict.alternatives if a.name == verdict.decision.reference)
    mixture = Mixture(design.domains, chosen @ design.R)
    return Opinion.of(
        mixture=dict(mixture),
        reference=dict(own),
        proposal=dict(verdict.optimum.mixture),
        interval=dict(verdict.interval),
        gain=_gain(tables, omega, design, chosen, own),
    )


def _gain(tables: Any, omega: Any, design: ProbeDesign, chosen: Any, reference: Mixture) -> float | None:
    """Nats by which the mixed predictions beat those of the probe on the mixture in use; None where there is no such probe."""
    at = [i for i, row in enumerate(design.R) if np.allclose(row, reference.weights, atol=1e-9)]
    if not at:
        return None
    rows = np.vstack([np.eye(len(design.R))[at[0]], chosen])
    values = losses_at(tables, rows) @ omega
    return float(values[0] - values[1])
