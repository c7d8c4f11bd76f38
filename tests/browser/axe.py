"""axe-core on a page, where it is installed: OPMIX_AXE is the file `axe.min.js` (`pip install --no-deps axe-playwright-python` has one)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

_RUN = """
return axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map(
  (v) => `${v.id} (${v.impact}): ${v.nodes.length} x ${v.nodes[0].html.slice(0, 160)}: ${v.nodes[0].failureSummary}`));
"""


def script() -> Path | None:
    """The file; None: there is none."""
    if given := os.environ.get("OPMIX_AXE"):
        return Path(given)
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "axe.min.js"


def violations(browser: Any) -> list[str]:
    """What axe-core objects to on the page that is open."""
    place = script()
    assert place is not None
    browser.run(place.read_text(encoding="utf-8") + "\nwindow.axe = axe;")
    return list(browser.run(_RUN))
