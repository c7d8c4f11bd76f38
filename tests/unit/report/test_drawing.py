"""Charts: whole pictures whatever is marked, and axes that can be read."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.report.axes import tick_labels, ticks
from opmix.report.drawing import BOTTOM, INK, LEFT, TOP, Chart

NUMBER = r"-?\d+(?:\.\d+)?"


def parsed(chart, label="what it says"):
    return ElementTree.fromstring(chart.svg(label))


def heights_of(path):
    return [float(y) for y in re.findall(rf"[ML]{NUMBER} ({NUMBER})", path)]


def drawn(chart):
    """Paths of the marks inside the axes."""
    return [path.get("d") for path in parsed(chart).find("g").iter("path")]


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e15, 1e15), st.floats(1e-9, 1e15), st.integers(3, 9))
def test_ticks_are_few_round_evenly_spaced_and_inside(low, width, most):
    high = low + max(width, 1e-6 * abs(low))
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    step = high - low if len(found) == 1 else found[1] - found[0]
    assert low - 1e-6 * step <= found[0]
    assert found[-1] <= high + 1e-6 * step
    np.testing.assert_allclose(np.diff(found), step if len(found) > 1 else [], rtol=1e-6)
    names, _ = tick_labels(found)
    assert len(set(names)) == len(found)


def test_a_chart_of_anything_is_a_whole_picture_without_a_number_that_is_none():
    odd = [[], [1.0], [2.0, 2.0], [0.0, 1e300], [float("nan"), float("inf")], [1e-12, 2e-12]]
    for values in odd:
        chart = Chart()
        chart.line(values, values, colour=INK)
        chart.dots(values, values, colour=INK, radius=2)
        chart.dots(values, values, colour=INK, radius=2, hollow=True)
        chart.diamonds(values, values, colour=INK, radius=2)
        chart.errors(values, values, np.ones(len(values)), colour=INK, cap=2)
        picture = chart.svg("x")
        assert ElementTree.fromstring(picture).get("class") == "panel"
        assert not re.search(r"\b(nan|inf|None)\b", picture)


def test_names_are_words_and_no_markup():
    chart = Chart()
    hostile = "</text><script>alert(1)</script>\"'&"
    chart.line([0, 1], [0, 1], colour=INK)
    chart.words(hostile, 0, None)
    chart.beside(hostile, 0.5, colour=INK, of=(1, 1))
    chart.x.label = chart.y.label = hostile
    picture = parsed(chart, label=hostile)
    assert [t.text for t in picture.iter("text")].count(hostile) == 4
    assert picture.get("aria-label") == picture.find("title").text == hostile


def test_marks_lie_where_their_numbers_say():
    chart = Chart()
    chart.x.given, chart.y.given = (0.0, 2.0), (10.0, 20.0)
    chart.line([0, 2], [10, 20], colour=INK)
    chart.across(15.0)
    corner, level = drawn(chart)
    assert heights_of(corner) == pytest.approx([BOTTOM, TOP])
    assert float(re.match(rf"M({NUMBER})", corner)[1]) == pytest.approx(LEFT)
    assert heights_of(level) == pytest.approx([(BOTTOM + TOP) / 2])


def test_limits_hold_what_is_marked_and_a_gap_breaks_a_line():
    chart = Chart()
    chart.line([0, 1, 2, 3], [5.0, 4.0, np.nan, 6.0], colour=INK)
    chart.errors([1], [6.0], [2.0], colour=INK)
    chart.y.margin = 0.0
    assert chart.y.limits == (4.0, 8.0)
    line, _ = drawn(chart)
    assert line.count("M") == 2
    assert all(a > b for a, b in pairwise(sorted(heights_of(line), reverse=True)))


def test_two_charts_of_a_page_keep_their_ids_apart():
    ids = set()
    for height in (1.0, 2.0):
        chart = Chart()
        chart.y.given = (0.0, 3.0)
        chart.across(height)
        ids.add(parsed(chart).find("clipPath").get("id"))
    assert len(ids) == 2
