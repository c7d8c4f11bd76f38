"""Escaping, numbers as people read them, and scales."""

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.report import html
from opmix.report.html import Html, Scale, el


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.labels = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.labels += [value for key, value in attrs if key == "aria-label"]

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_text_comes_back_as_text(name):
    reader = _Reader()
    reader.feed(el("p", name, aria_label=name))
    reader.close()
    assert reader.tags == ["p"]
    assert reader.text == name
    assert reader.labels == [name]


def test_only_markup_made_here_is_trusted():
    assert el("p", el("b", "x"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"
    assert html.join(["<", Html("<br>"), None]) == "&lt;<br>"
    assert el("a", href=None, hidden=True, class_="k", aria_label='"') == '<a hidden class="k" aria-label="&quot;"></a>'


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (html.number(-0.0321), "\u22120.032"),
        (html.number(-0.0001, sign=True), "0.000"),
        (html.number(0.5, 1, sign=True), "+0.5"),
        (html.number(None), html.DASH),
        (html.number(math.nan), html.DASH),
        (html.number(123227.3), "1.2\u202f\u00d7\u202f10\u2075"),
        (html.percent(0.2345), "23.4\u202f%"),
        (html.percent(0.9, 0), "90\u202f%"),
        (html.count(2_345_678), "2.35\u202fM"),
        (html.count(12), "12"),
        (html.scientific(3.2e14), "3.2\u202f\u00d7\u202f10\u00b9\u2074"),
        (html.scientific(0.0), "0.000"),
        (html.scientific(-2e-9), "\u22122.0\u202f\u00d7\u202f10\u207b\u2079"),
        (html.duration(192), "3\u202fmin 12\u202fs"),
        (html.duration(0.0061), "0.0061\u202fs"),
        (html.duration(7300), "2\u202fh 1\u202fmin"),
        (html.span((0.1, -0.2), 1, sign=True), "+0.1 to \u22120.2"),
    ],
)
def test_numbers_read_well(made, text):
    assert made == text


@given(st.lists(st.floats(-10, 10), min_size=1), st.floats(allow_nan=False, allow_infinity=False))
def test_a_scale_holds_zero_and_its_values_and_nothing_leaves_it(values, anything):
    scale = Scale.around(values)
    assert scale.low <= 0 <= scale.high
    assert all(scale.low <= v <= scale.high for v in values)
    assert 0 <= scale.at(anything) <= 100


def test_a_runaway_interval_does_not_squeeze_the_rest():
    scale = Scale.around([0.1, -0.05], [0.03, 0.2, -0.1, 123227.0])
    assert scale.high < 2
    assert scale.at(0.1) - scale.at(-0.05) > 5
    honest = Scale.around([0.002], [-0.169, 0.155])
    assert honest.low < -0.169
    assert honest.high > 0.155
