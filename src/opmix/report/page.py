"""Put the page together: sections, the what-if view's data, and a policy that forbids it any network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from opmix.errors import StoreError
from opmix.mixing.mixture import FloatArray
from opmix.report import sections
from opmix.report.compare import comparison_sections
from opmix.report.document import ReportData, load_report_data
from opmix.report.evidence import agreement, columns, law_curves, positions, quality_table
from opmix.report.html import Html, el, folded, join, number, percent, raw
from opmix.report.laws import draws_for_view, law_for_view
from opmix.report.life import life_sections
from opmix.report.model import Model, build_model
from opmix.report.opening import opening, proposal_of, reference_name
from opmix.report.targets import targets_section, weights_of_view
from opmix.report.verified import verified
from opmix.report.words import ending
from opmix.report.worth import worth_section
from opmix.results.comparison import CompareFile
from opmix.results.life import LifeFile
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.runs.files import writing_prefix
from opmix.runs.trace import span

_LABELS = {"size": "by size", "current": "current", "uniform": "uniform", "proposal": "proposal"}
_NAV = {
    "summary": "Mixture",
    "targets": "Targets",
    "whatif": "What if?",
    "measured": "Measured",
    "curves": "Laws",
    "worth": "Worth",
    "agreement": "Fit",
    "alternatives": "Alternatives",
    "check": "Check",
    "verified": "Verified",
    "solver": "Solver",
    "configuration": "Cost",
}

_LIFE_NAV = {
    "summary": "Life",
    "stages": "Stages",
    "losses": "Losses",
    "forgetting": "Forgetting",
    "cost": "Cost",
    "configuration": "Configuration",
}


_COMPARE_NAV = {
    "summary": "Methods",
    "domains": "Domains",
    "forgetting": "Forgetting",
    "mixtures": "Mixtures",
    "cost": "Cost",
    "configuration": "Configuration",
}


@span("report", "reports")
def write_report(folder: Path) -> Path:
    """Read a run folder and write `report.html` into it, whole or not at all.

    Args:
        folder: As for `load_report_data`.

    Returns:
        The path of the report.

    Raises:
        StoreError: The folder has no readable result, or cannot be written.
    """
    folder = Path(folder)
    result = next((name for name in _BUILDERS if (folder / name).is_file()), "mixture.json")
    page = _BUILDERS[result](folder)
    target = folder / "report.html"
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder, prefix=writing_prefix(), delete=False
        ) as file:
            file.write(page)
        # Temporary files are private; a report is as readable as the files beside it.
        Path(file.name).chmod((folder / result).stat().st_mode & 0o666)
        os.replace(file.name, target)  # noqa: PTH105
    except OSError as error:
        with contextlib.suppress(OSError, NameError):
            Path(file.name).unlink(missing_ok=True)
        raise StoreError(f"{target}: cannot be written ({error}); free space or choose a writable folder") from error
    return target


def build_report(data: ReportData) -> str:
    """One self-contained HTML page: no network, no files beside it.

    Args:
        data: What `load_report_data` read.

    Raises:
        StoreError: Laws, coordinates and draws contradict each other.
    """
    document, model = data.document, build_model(data)
    made = _sections(data, model)
    view = _whatif(data, model) if model is not None and len(model.coordinates) > 1 else None
    ids = ["summary", *(["whatif"] if view else []), *re.findall(r'<section[^>]* id="(\w+)"', "".join(made))]
    view_scripts = ["numerics.js", "plot.js", "whatif.js"] if view else []
    scripts = ["\n".join(map(_asset, ["page.js", *view_scripts]))]
    title = " · ".join(part for part in (f"opmix {document.kind}", data.name) if part)
    when = document.created[:16].replace("T", " ")
    parts: dict[str, Html] = {
        "csp": raw(" ".join(_allow(s) for s in scripts)),
        "title": join([title]),
        "subtitle": join([" · ".join(p for p in (document.kind, data.name, when) if p)]),
        "css": raw(_asset("report.css")),
        "nav": join(el("a", _NAV[i], href=f"#{i}") for i in ids if i in _NAV),
        "opening": opening(document, model),
        "whatif": view[0] if view else raw(""),
        "sections": join(made),
        "footer": ending(f"Losses in {document.units}, predicted unless called measured."),
        "data": view[1] if view else raw(""),
        "scripts": join(raw(f"<script>{s}</script>") for s in scripts),
    }
    return fill(_asset("report.html"), parts)


def build_life_report(folder: Path) -> str:
    """The page of a whole life (`opmix run`).

    Raises:
        StoreError: `life.json` is damaged.
    """
    return _plain_page(folder, "run", _LIFE_NAV, life_sections(LifeFile.read(folder)))


def build_comparison_report(folder: Path) -> str:
    """The page of a comparison (`opmix compare`).

    Raises:
        StoreError: `compare.json` is damaged.
    """
    return _plain_page(folder, "compare", _COMPARE_NAV, comparison_sections(CompareFile.read(folder)))


_BUILDERS: dict[str, Callable[[Path], str]] = {
    "life.json": build_life_report,
    "compare.json": build_comparison_report,
    "mixture.json": lambda folder: build_report(load_report_data(folder)),
}
"""By the file that a run's result is in."""


def _plain_page(folder: Path, kind: str, nav: Mapping[str, str], made: Mapping[str, Html]) -> str:
    """A page without a what-if view; its first section opens it, the manifest ends it."""
    if (manifest := Manifest.find(folder)) is not None:
        text = json.dumps(manifest.content, indent=2, ensure_ascii=False)
        shown = folded("manifest.json", el("pre", text, tabindex="0"))
        made = {**made, "configuration": el("section", el("h2", "Configuration"), shown, id="configuration")}
    scripts, name = [_asset("page.js")], folder.resolve().name
    parts: dict[str, Html] = {
        "csp": raw(" ".join(_allow(s) for s in scripts)),
        "title": join([f"opmix {kind} · {name}"]),
        "subtitle": join([f"{kind} · {name}"]),
        "css": raw(_asset("report.css")),
        "nav": join(el("a", nav[i], href=f"#{i}") for i in made),
        "opening": made["summary"],
        "whatif": raw(""),
        "sections": join(section for i, section in made.items() if i != "summary"),
        "footer": ending("Losses in nats per token."),
        "data": raw(""),
        "scripts": join(raw(f"<script>{s}</script>") for s in scripts),
    }
    return fill(_asset("report.html"), parts)


def fill(template: str, parts: Mapping[str, Html]) -> Html:
    """Replace `@name@` in one pass, so that nothing inside a part is taken for a placeholder."""
    return Html(re.sub(r"@(\w+)@", lambda m: parts[m[1]], template))


def _sections(data: ReportData, model: Model | None) -> list[Html]:
    document = data.document
    made: list[Html | None] = [targets_section(document)]
    if data.comparison is not None:
        made.append(sections.comparison(data.comparison, document.units))
    if data.verification is not None:
        made.append(verified(data.verification))
    if model is not None:
        made += [law_curves(document, model, data.proxies), worth_section(model)]
        fit = agreement(document, model, data.proxies) if data.proxies is not None else None
        quality = quality_table(document, model)
        made.append(fit)
        made.append(el("section", quality, id="laws"))
    made += [sections.alternatives(document, model), sections.check(document), sections.certificate(document)]
    made.append(sections.configuration(data))
    return [part for part in made if part]


def _asset(name: str) -> str:
    return (resources.files("opmix.report") / name).read_text(encoding="utf-8")


def _allow(script: str) -> str:
    """The policy's name for a script: markup that slipped in from outside would not run."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _whatif(data: ReportData, model: Model) -> tuple[Html, Html]:
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
    return fill(_asset("whatif.html"), parts), raw(f'<script type="application/json" id="whatif-data">{text}</script>')


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
