"""What simulated proxies say: one row a model, the law of every evaluation set, and how far both can be trusted."""

from __future__ import annotations

from functools import partial

import numpy as np

from opmix.mixing.decision import DecisionSettings
from opmix.mixing.design import StageDesign, interference
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import loss_difference_error
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.table import ProxyTable
from opmix.mixing.twins import InterferenceCheck, check_twins
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import Simulation


def proxy_table(design: StageDesign, simulated: Simulation) -> ProxyTable:
    """One row per simulated model."""
    weights: FloatArray = np.array([w.weights for w in design.points])
    return ProxyTable(
        points=design.names,
        kinds=design.kinds,
        domains=design.probes.domains,
        metrics=simulated.metrics,
        mixtures=design.mixtures,
        losses=simulated.losses,
        standard_errors=simulated.standard_errors,
        probes=design.probes.probes,
        weights=weights,
        interference=interference(weights, simulated.gram),
        fitted=design.fitted,
    )


def law_of_proxies(table: ProxyTable, *, delta: float, with_interference: bool) -> LawFit:
    """One law per evaluation set (paper, section 3, step 4); with a term for interference where that predicts left-out points better."""
    kept = table.fitted_rows
    law = partial(
        fit_law,
        table.mixtures[kept],
        table.losses[kept],
        domains=table.domains,
        metrics=table.metrics,
        delta=delta,
    )
    plain = law()
    too_few = len(kept) < plain.rank + 4
    if not with_interference or table.interference is None or too_few:
        return plain
    term = law(interference=table.interference[kept])
    return term if left_out_error(term) < left_out_error(plain) else plain


def interference_check(design: StageDesign, simulated: Simulation, table: ProxyTable, fit: LawFit) -> InterferenceCheck:
    """Averaged against jointly trained probes on the same mixture."""
    errors = np.array([loss_difference_error(simulated.nll, simulated.tokens, a, b) for a, b in design.twins])
    return check_twins(design, table, fit.interference, errors)


def evaluation_noise(design: StageDesign, simulated: Simulation, rule: DecisionSettings) -> FloatArray:
    """What drawing other held-out sequences would change of the fitted losses, (B, M, E) nats."""
    rows = [sums[np.flatnonzero(design.fitted)] for sums in simulated.nll]
    return resampling_noise(rows, simulated.tokens, num_draws=rule.draws, seed=rule.seed + 1)


def left_out_error(fit: LawFit) -> float:
    """Root mean square of the mean loss's left-one-out residual, nats."""
    return float(np.sqrt(np.mean(fit.residuals.mean(axis=1) ** 2)))
