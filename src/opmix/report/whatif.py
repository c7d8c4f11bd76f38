"""The what-if view: its markup, and the laws, draws and presets that it computes with in the browser."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.report.document import ReportData
from opmix.report.evidence import columns, positions
from opmix.report.html import Html, join, number, percent, raw
from opmix.report.laws import draws_for_view, law_for_view
from opmix.report.model import Model
from opmix.report.opening import proposal_of, reference_name
from opmix.report.targets import weights_of_view
from opmix.report.templates import asset, fill
from opmix.results.mixture import MixtureFile

_LABELS = {"size": "by size", "current": "current", "uniform": "uniform", "proposal": "proposal"}


def whatif_view(data: ReportData, model: Model) -> tuple[Html, Html]:
    """The view's markup and its data."""
    document = data.document
    payload = whatif_data(data, model)
    text = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    # Inside a script element only "<" could end it early; these escapes are the same JSON.
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    bands = f", with {percent(model.level, 0)} intervals over {len(model.draws)} draws" if model.draws else ""
    if bands and document.decision is not None and document.decision.noise:
        bands += f" (the search's noise of {number(document.decision.noise)} nats comes on top)"
    limits = (
        " The live solve knows ceilings only, not the run's other constraints." if document.settings.constraints else ""
    )
    if document.settings.objective == "perplexity":
        limits += " It minimises the mean loss; the search minimised the mean perplexity."
    even = np.ptp(model.weights) < 1e-12
    parts = {
        "units": join([document.units]),
        "bands": join([bands]),
        "limits": join([limits]),
        "mean": join(["mean over eval sets" if even else "weighted mean over eval sets"]),
        "worst": join([payload["worstLabel"]]),
        "reference": join([next(p["label"] for p in payload["presets"] if p["name"] == payload["reference"])]),
    }
    return fill(asset("whatif.html"), parts), raw(f'<script type="application/json" id="whatif-data">{text}</script>')


def whatif_data(data: ReportData, model: Model) -> dict[str, Any]:
    """What the view is given: laws at full precision, draws as float32, presets on coordinates."""
    document, settings = data.document, data.document.settings
    presets = _presets(document, model)
    names = [p["name"] for p in presets]
    reference = reference_name(document)
    prior = model.vector(settings.prior) if settings.prior else (model.A.sum(axis=0) > 0).astype(float)
    known = document.baseline
    worst = [known.get(m, np.nan) for m in model.metrics]
    if not np.isfinite(worst).all():
        worst = []
    return {
        "domains": model.domains,
        "metrics": model.metrics,
        "coordinates": model.coordinates,
        **law_for_view(model.law),
        "A": model.A.tolist(),
        "inside": [_inside(model, k) for k in range(len(model.coordinates))],
        "weights": model.weights.tolist(),
        "aims": weights_of_view(document, model.metrics, model.weights.tolist()),
        "prior": (prior / prior.sum()).tolist(),
        "kl": settings.kl,
        "objective": "worst_case" if settings.objective == "worst_case" else "mean",
        "worstReference": worst or [0.0] * len(model.metrics),
        "worstLabel": "largest rise over now" if worst else "largest loss",
        "presets": presets,
        "start": presets[0]["x"],
        "reference": reference if reference in names else "uniform",
        "reach": _reach(data, model),
        "coordinate": _telling(model, np.array(presets[0]["x"])),
        "level": model.level,
        "draws": draws_for_view(model.draws),
    }


def _presets(document: MixtureFile, model: Model) -> list[dict[str, Any]]:
    """Mixtures the coordinates can express; the proposal first, uniform always there."""
    proposal = proposal_of(document)
    wanted = [("proposal", proposal), *((a.name, a.mixture) for a in document.alternatives if a.mixture)]
    best = document.optimum
    if best and np.abs(model.vector(best) - model.vector(proposal)).max() > 1e-3:
        wanted.append(("optimum", best))
    made: dict[str, FloatArray] = {}
    for name, shares in wanted:
        x = None if name in made else model.position(model.vector(shares))
        if x is not None and x.sum() > 0:
            made[name] = x / x.sum()
    # Uniform over domains may be out of reach of the coordinates; equal parts of these never are.
    labels = _LABELS if "uniform" in made or not model.collapsed else _LABELS | {"uniform": "equal parts"}
    made.setdefault("uniform", np.full(len(model.coordinates), 1 / len(model.coordinates)))
    return [{"name": n, "label": labels.get(n, n), "x": x.tolist()} for n, x in made.items()]


def _inside(model: Model, k: int) -> str:
    """What a collapsed coordinate stands for; empty for a domain of its own."""
    shares = {d: float(s) for d, s in zip(model.domains, model.A[k], strict=True) if s > 0}
    if set(shares) == {model.coordinates[k]}:
        return ""
    top = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{d} {percent(s, 0)}" for d, s in top[:3]) + (f" and {len(top) - 3} more" if len(top) > 3 else "")


def _telling(model: Model, start: FloatArray) -> int:
    """The coordinate along whose share the mean loss changes most, the others in the proportions that they start with."""
    shares = np.linspace(0.0, 1.0, 21)
    means = [model.predict(model.profile(start, k, shares)) @ model.weights for k in range(len(model.coordinates))]
    spread = [float(np.ptp(mean)) for mean in means]
    # Two coordinates are one line, and tell the same; the later is the new one.
    return max(range(len(spread)), key=lambda k: (spread[k] > max(spread) * (1 - 1e-6), k))


def _reach(data: ReportData, model: Model) -> list[list[float]] | None:
    """Smallest and largest simulated share of every coordinate."""
    if data.proxies is None:
        return None
    x = positions(columns(data.proxies, model)[0], model)
    x = x[np.isfinite(x).all(axis=1)]
    return np.stack([x.min(axis=0), x.max(axis=0)], axis=1).tolist() if len(x) else None
