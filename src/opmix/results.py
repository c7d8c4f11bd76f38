"""The files a decision leaves behind: `mixture.json`, `law_draws.json`, `timing.json`, `manifest.json`, the proxy table.

One schema for `search` and `fit`; the report, the exporters and other people's scripts read it. `mixture.json` holds nothing that
a clock decides, so the same inputs give the same bytes; when and how long is in `timing.json`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np

from opmix.mixing.decision import Alternative, Verdict
from opmix.mixing.mixture import Mixture
from opmix.protocols.law import LawFit
from opmix.runs.files import plain

SCHEMA = 1
_REPORT_DRAWS = 64


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss independent of the tokenizer: nats per token over ln 2 and UTF-8 bytes per token."""
    return nats_per_token / math.log(2) / bytes_per_token


def laws_json(fit: LawFit) -> dict[str, Any]:
    """Per evaluation set: the law's parameters, and how well it holds."""
    return {
        metric: {
            **fit.law.json(e),
            "huber": quality.huber,
            "rmse": quality.rmse,
            "loo_rmse": quality.loo_rmse,
            "spearman": quality.spearman,
            "loo_spearman": quality.loo_spearman,
            "num_points": len(fit.fitted),
            "rank": fit.rank,
        }
        for e, (metric, quality) in enumerate(zip(fit.law.metrics, fit.quality, strict=True))
    }


def verdict_json(kind: str, fit: LawFit, verdict: Verdict, **extra: Any) -> dict[str, Any]:
    """The content of `mixture.json`: the same inputs give the same bytes."""
    settings, coordinates = verdict.settings, verdict.coordinates
    domains = fit.law.domains
    collapsed = coordinates.names != coordinates.domains
    content = {
        "schema": SCHEMA,
        "kind": kind,
        "formula": f"optimum = argmin_p objective({fit.law.formula}) + kl * KL(p || prior), constants dropped",
        "mixture": dict(verdict.mixture),
        "optimum": dict(verdict.optimum.mixture),
        "interval": verdict.interval,
        "interval_level": verdict.decision_settings.interval_level,
        "decision": vars(verdict.decision),
        "laws": laws_json(fit),
        "alternatives": [_alternative(a) for a in verdict.alternatives],
        "solver": {
            "status": verdict.optimum.status,
            "objective": verdict.optimum.objective,
            "gap": verdict.optimum.gap,
            "max_violation": verdict.optimum.max_violation,
            "iterations": verdict.optimum.iterations,
            "infeasible_draws": verdict.optima.infeasible,
        },
        "settings": {
            "objective": settings.objective,
            "weights": None if settings.omega is None else dict(zip(fit.law.metrics, settings.omega, strict=True)),
            "kl": settings.kl,
            "prior": dict(settings.prior or Mixture.uniform(domains)),
            "constraints": verdict.constraints.sentences(domains),
            **fit.settings,
            "draws": len(verdict.draws),
            "seed": verdict.decision_settings.seed,
        },
        "coordinates": {
            "names": list(coordinates.names),
            "mixtures": {
                n: dict(zip(domains, row, strict=True)) for n, row in zip(coordinates.names, coordinates.E, strict=True)
            },
        }
        if collapsed
        else None,
        "units": "nats per token",
    }
    return plain({**content, **extra})


def _alternative(a: Alternative) -> dict[str, Any]:
    return {
        **vars(a),
        "mixture": dict(a.mixture),
        "predicted": dict(a.predicted),
        "measured": None if a.measured is None else dict(a.measured),
    }


def draws_json(verdict: Verdict) -> dict[str, Any]:
    """Posterior draws for live intervals, thinned."""
    chosen = np.linspace(0, len(verdict.draws) - 1, min(_REPORT_DRAWS, len(verdict.draws))).astype(int)
    return verdict.draws.take(chosen).json()


def timing_json(verdict: Verdict, **extra: Any) -> dict[str, Any]:
    """The content of `timing.json`: when the decision was made and how long its parts took, seconds."""
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": dict(verdict.seconds),
        "solver_seconds": verdict.optimum.seconds,
    }
    return plain({**content, **extra})
