"""Put the page together: its sections, the what-if view, and a policy that forbids it any network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from opmix.errors import StoreError
from opmix.report import sections
from opmix.report.compare import comparison_sections
from opmix.report.document import ReportData, load_report_data
from opmix.report.evidence import agreement, law_curves, quality_table
from opmix.report.html import Html, el, folded, join, raw
from opmix.report.life import life_sections
from opmix.report.model import Model, build_model
from opmix.report.opening import opening
from opmix.report.targets import targets_section
from opmix.report.templates import allow, asset, fill
from opmix.report.verified import verified
from opmix.report.whatif import whatif_view
from opmix.report.words import ending
from opmix.report.worth import worth_section
from opmix.results.comparison import CompareFile
from opmix.results.life import LifeFile
from opmix.results.manifest import Manifest
from opmix.runs.files import writing_prefix
from opmix.runs.trace import span

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
    view = whatif_view(data, model) if model is not None and len(model.coordinates) > 1 else None
    ids = ["summary", *(["whatif"] if view else []), *re.findall(r'<section[^>]* id="(\w+)"', "".join(made))]
    view_scripts = ["numerics.js", "plot.js", "whatif.js"] if view else []
    scripts = ["\n".join(map(asset, ["page.js", *view_scripts]))]
    title = " · ".join(part for part in (f"opmix {document.kind}", data.name) if part)
    when = document.created[:16].replace("T", " ")
    parts: dict[str, Html] = {
        "csp": raw(" ".join(allow(s) for s in scripts)),
        "title": join([title]),
        "subtitle": join([" · ".join(p for p in (document.kind, data.name, when) if p)]),
        "css": raw(asset("report.css")),
        "nav": join(el("a", _NAV[i], href=f"#{i}") for i in ids if i in _NAV),
        "opening": opening(document, model),
        "whatif": view[0] if view else raw(""),
        "sections": join(made),
        "footer": ending(f"Losses in {document.units}, predicted unless called measured."),
        "data": view[1] if view else raw(""),
        "scripts": join(raw(f"<script>{s}</script>") for s in scripts),
    }
    return fill(asset("report.html"), parts)


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
    scripts, name = [asset("page.js")], folder.resolve().name
    parts: dict[str, Html] = {
        "csp": raw(" ".join(allow(s) for s in scripts)),
        "title": join([f"opmix {kind} · {name}"]),
        "subtitle": join([f"{kind} · {name}"]),
        "css": raw(asset("report.css")),
        "nav": join(el("a", nav[i], href=f"#{i}") for i in made),
        "opening": made["summary"],
        "whatif": raw(""),
        "sections": join(section for i, section in made.items() if i != "summary"),
        "footer": ending("Losses in nats per token."),
        "data": raw(""),
        "scripts": join(raw(f"<script>{s}</script>") for s in scripts),
    }
    return fill(asset("report.html"), parts)


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
