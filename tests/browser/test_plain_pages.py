"""The reports of a life and of a comparison in a real Chromium: quiet, readable on a phone, at once."""

import json
import time

import pytest
from comparison_sample import write_comparison
from life_sample import loss, stage

from opmix.report import write_report

WIDE = "return [document.documentElement.scrollWidth, innerWidth]"


def write_life(folder):
    """The files of a life of two seeds and twelve domains."""
    folder.mkdir(exist_ok=True)
    losses = {f"domain_{i}": loss(5.0, 4.0 - 0.1 * i) for i in range(12)}
    mixture = dict.fromkeys(losses, 1 / 12)
    lives = {}
    for seed in ("0", "1"):
        late = stage("late", seed, mixture, losses, {}, True)
        late["cost"]["tokens"]["probes"] = 1e5
        lives[seed] = {"stages": [late], "model": "m"}
    over = {"mean": 0.15, "sd": 0.07, "n": 2}
    stages = [
        {
            "name": "late",
            "n": 2,
            "mixture": dict.fromkeys(mixture, over),
            "test_loss": dict.fromkeys(losses, over),
            "mean_test_loss": over,
            "forgetting": {},
            "search_share": over,
        }
    ]
    content = {"schema": 1, "kind": "run", "units": "nats per token", "seeds": lives, "stages": stages}
    (folder / "life.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session", params=["compare", "life"])
def plain_page(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_report(write_comparison(folder) if request.param == "compare" else write_life(folder))


def test_it_is_quiet_and_asks_nothing_of_the_network(browser, plain_page):
    browser.window(1280, 800)
    started = time.monotonic()
    browser.open(plain_page)
    browser.wait("return document.querySelector('#summary svg.panel')")
    assert time.monotonic() - started < 2
    browser.messages(), browser.requests()
    browser.open(plain_page)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.messages() == []
    assert browser.requests() == [plain_page.resolve().as_uri()]


def test_every_link_of_the_menu_leads_to_a_section(browser, plain_page):
    browser.open(plain_page)
    lost = browser.run(
        "return [...document.querySelectorAll('nav a')].map((a) => a.hash).filter((h) => !document.querySelector(h))"
    )
    assert lost == []
    assert browser.run("return document.querySelectorAll('nav a').length") >= 4


def test_it_fits_a_phone(browser, plain_page):
    browser.window(390, 844)
    browser.open(plain_page)
    wide, inner = browser.run(WIDE)
    assert wide <= inner
    browser.window(1280, 800)


def test_every_picture_has_words(browser, plain_page):
    browser.open(plain_page)
    mute = browser.run(
        "return [...document.querySelectorAll('svg[role=img]')].filter((s) => !s.getAttribute('aria-label')).length"
    )
    assert mute == 0
    assert browser.run("return document.querySelectorAll('svg[role=img]').length") > 1
