"""axe-core finds nothing on any page, on a desktop and on a phone, light and dark."""

import shutil
import threading

import axe
import pytest
import samples
from comparison_sample import write_comparison
from test_plain_pages import write_life

from opmix.report import write_report
from opmix.view import RunServer

pytestmark = pytest.mark.skipif(axe.script() is None, reason="axe-core is not installed: set OPMIX_AXE to axe.min.js")
SIZES = {"desktop": (1280, 800, False), "phone": (390, 844, True)}


@pytest.fixture(scope="session")
def pages(reports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        **reports,
        "compare": write_report(write_comparison(folder / "compare")),
        "life": write_report(write_life(folder / "life")),
    }


PAGES = ["continual", "rebalancing", "swarm", "compare", "life"]
EVERY = [(page, size, scheme) for page in PAGES for size in SIZES for scheme in ("light", "dark")]


@pytest.mark.parametrize(("page", "size", "scheme"), [*EVERY, ("large", "desktop", "light")])
def test_nothing_is_found(browser, pages, page, size, scheme):
    width, height, mobile = SIZES[size]
    browser.window(width, height, mobile=mobile, scheme=scheme)
    browser.open(pages[page])
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert axe.violations(browser) == []
    browser.window(1280, 800)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    made, root = samples.write_all(tmp_path_factory.mktemp("samples")), tmp_path_factory.mktemp("runs")
    for name in ("continual", "rebalancing"):
        shutil.copytree(made[name], root / name)
    with RunServer(root) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served.address
        served.shutdown()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", ["", "compare?run=continual&run=rebalancing"])
def test_nothing_is_found_where_runs_are_viewed(browser, server, page, size):
    width, height, mobile = SIZES[size]
    browser.window(width, height, mobile=mobile)
    browser.open(server + page)
    assert browser.wait("return document.querySelectorAll('table tbody tr').length") > 0
    assert axe.violations(browser) == []
    browser.window(1280, 800)
