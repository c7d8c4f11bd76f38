"""Targets in a real Chromium: sliders of their weights move the mixture, tables of any size stay on the page."""

import pytest
from target_samples import write_aimed

from opmix.report import write_report

SIZES = [(2, 1), (6, 5), (17, 52)]
WEIGH = """
const [index, value] = arguments;
const slider = document.querySelectorAll('#aims input[type=range]')[index];
slider.value = value;
slider.dispatchEvent(new Event('change', { bubbles: true }));
return new Promise((done) => setTimeout(() => done([opmix.state.x, opmix.data.weights]), 300));
"""
WIDE = "return [document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def aims(tmp_path_factory):
    root = tmp_path_factory.mktemp("aims")
    return {size: write_report(write_aimed(root / f"{size[0]}-{size[1]}", *size, silent=size[1] > 1)) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [390, 1280])
def test_sections_of_all_sizes_stay_on_the_page(browser, aims, size, width):
    browser.window(width, 900)
    browser.open(aims[size])
    browser.wait("return window.opmix && document.querySelector('#headline').textContent")
    scroll, inner = browser.run(WIDE)
    assert scroll <= inner
    assert browser.run("return document.querySelectorAll('#aims input[type=range]').length") == size[1]
    assert browser.run("return document.querySelectorAll('#targets table').length") >= 3
    assert browser.run("return document.querySelectorAll('#targets figure svg').length") == 1


def test_weight_on_one_target_moves_the_mixture_towards_its_own(browser, aims):
    browser.window(1280, 900)
    browser.open(aims[6, 5])
    browser.wait("return window.opmix && document.querySelector('#headline').textContent")
    even = browser.run("return opmix.state.x")
    for index in range(1, 5):
        x, weights = browser.run(WEIGH, index, 0)
    assert [w for w in weights if w > 0] == pytest.approx([1.0])
    assert x != pytest.approx(even, abs=0.02)
    assert x[0] > even[0] + 0.1  # target_0 is like domain_0
    told = browser.run("return [...document.querySelectorAll('#aims output')].map((o) => o.textContent)")
    assert told[0].startswith("100")
    again, kept = browser.run(WEIGH, 0, 0)  # nothing left to minimise: the weights stay
    assert kept == pytest.approx(weights)
    assert again == pytest.approx(x, abs=1e-6)
