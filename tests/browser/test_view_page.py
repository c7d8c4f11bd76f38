"""`opmix view` in a real Chromium: follows runs as they come, keeps ticks, compares; quiet, and whole on a phone."""

import shutil
import threading

import pytest
import samples

from opmix.view import RunServer


@pytest.fixture
def served(tmp_path):
    made = samples.write_all(tmp_path / "samples")
    root = tmp_path / "runs"
    shutil.copytree(made["continual"], root / "first")
    shutil.copytree(made["rebalancing"], root / "second")
    with RunServer(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield root, server.address, made["swarm"]
        server.shutdown()


def test_the_list_follows_runs_and_ticks_stay(browser, served):
    root, address, later = served
    browser.window(1280, 800)
    browser.messages(), browser.requests()
    browser.open(address)
    assert browser.wait("return document.querySelectorAll('#runs tbody tr').length") == 2
    browser.run("document.querySelector('input[value=first]').click()")
    browser.wait("return performance.getEntriesByType('resource').length >= 1")
    shutil.copytree(later, root / "third")
    browser.wait("return document.querySelectorAll('#runs tbody tr').length == 3", seconds=10)
    assert browser.run("return [...document.querySelectorAll('input:checked')].map((b) => b.value)") == ["first"]
    browser.run("document.querySelector('input[value=second]').click(); document.querySelector('#runs button').click()")
    browser.wait("return location.pathname == '/compare'")
    assert browser.run("return document.querySelectorAll('table')[0].rows[0].cells.length") == 4
    assert browser.messages() == []
    assert {request.split("?")[0] for request in browser.requests()} == {address, f"{address}list", f"{address}compare"}


def test_it_fits_a_phone(browser, served):
    _, address, _ = served
    browser.window(390, 800, mobile=True)
    browser.open(address)
    width, inner = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    browser.window(1280, 800)
    assert width <= inner
