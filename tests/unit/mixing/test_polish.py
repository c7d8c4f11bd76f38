"""The last digits of an optimum, against closed forms."""

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from opmix.mixing.polish import polished


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0.3, 1), st.integers(0, 99))
def test_the_minimum_of_a_line_and_kl_is_found_from_beside_it(line, weight, seed):
    a = np.array(line)
    best = np.exp(-a / weight) / np.exp(-a / weight).sum()
    beside = best * np.exp(np.random.default_rng(seed).normal(0, 1e-3, len(a)))
    *_, last = islice(polished(beside / beside.sum(), lambda x: a + weight * (np.log(x) + 1), np.zeros((0, len(a)))), 4)
    np.testing.assert_allclose(last, best, rtol=1e-9)


def test_a_constraint_that_holds_with_equality_goes_on_holding():
    a, floor = np.array([0.3, 0.0, 2.0]), 0.25  # without its floor the last would have less
    start = np.array([0.31, 0.44, floor])
    *_, last = islice(polished(start, lambda x: a + np.log(x) + 1, np.array([[0.0, 0.0, -1.0]])), 6)
    np.testing.assert_allclose(last, [*(0.75 * np.exp(-a[:2]) / np.exp(-a[:2]).sum()), floor], rtol=1e-9)


def test_a_corner_and_a_plane_have_nowhere_to_go():
    assert list(polished(np.array([1.0, 0.0]), lambda x: np.array([0.0, 1.0]), np.zeros((0, 2)))) == []
    assert list(polished(np.array([0.5, 0.5]), lambda x: np.zeros(2), np.zeros((0, 2)))) == []
