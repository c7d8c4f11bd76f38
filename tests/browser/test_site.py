"""axe-core finds nothing on any page of the documentation's site, on a desktop and on a phone; `make docs` builds it first."""

import os
from pathlib import Path

import axe
import pytest

SITE = os.environ.get("OPMIX_SITE")
"""Folder of the built site."""
pytestmark = [
    pytest.mark.skipif(SITE is None, reason="`make docs` has built the site"),
    pytest.mark.skipif(axe.script() is None, reason="axe-core is not installed: set OPMIX_AXE to axe.min.js"),
]
SIZES = {"desktop": (1280, 800, False), "phone": (390, 844, True)}


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_found_on_the_site(browser, size):
    width, height, mobile = SIZES[size]
    browser.window(width, height, mobile=mobile)
    pages = sorted(page for page in Path(SITE).resolve().glob("*.html") if page.name != "404.html")  # the theme's own
    assert len(pages) > 30
    found = {}
    for page in pages:
        browser.open(page)
        if said := axe.violations(browser):
            found[page.name] = said
    browser.window(1280, 800)
    assert found == {}
