"""What stands in for scipy says what scipy says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from opmix.mixing.conic import _Sparse
from opmix.mixing.numerics import distinct_rows, logsumexp, median, normal_cdf, quantiles, softmax


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-800, 800), min_size=1, max_size=6), st.data())
def test_sums_of_exponentials(values, data):
    weight = st.just(0.0) | st.floats(1e-9, 5)  # scipy's own quotient overflows where one is next to nothing
    weights = np.array(data.draw(st.lists(weight, min_size=len(values), max_size=len(values))))
    weights[0] = max(weights[0], 0.1)
    rows = np.array([values, values[::-1]])
    np.testing.assert_allclose(logsumexp(rows, weights), special.logsumexp(rows, axis=-1, b=weights), rtol=1e-12)
    np.testing.assert_allclose(softmax(rows[0]), special.softmax(rows[0]), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("value", [-40.0, -3.0, -0.5, 0.0, 1.0, 9.0, np.inf, -np.inf, np.nan])
def test_the_normal_distribution(value):
    np.testing.assert_allclose(normal_cdf(value), special.ndtr(value), rtol=1e-12)


def test_a_matrix_by_columns_is_scipys():
    from scipy import sparse

    dense = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [-3.0, 4.0, 0.0]])
    ours, theirs = _Sparse.of(dense), sparse.csc_matrix(dense)
    for name in ("data", "indices", "indptr", "shape", "has_canonical_format", "has_sorted_indices", "nnz"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("shape", [(1,), (2,), (7, 3), (64, 2, 4), (200,)])
def test_quantiles_and_medians_are_those_of_numpy_to_the_bit(shape):
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal(shape), np.round(rng.standard_normal(shape), 1) + 0.0):
        for level in (0.5, 0.6, 0.9, 0.95):
            tail = (1 - level) / 2
            expected = np.quantile(values, [tail, 1 - tail], axis=0)
            assert np.array_equal(quantiles(values, [tail, 1 - tail]), expected)
        assert median(values.ravel()) == np.median(values)
    values[0] = np.nan
    assert np.isnan(quantiles(values, [0.1, 1])).all()


def test_rows_that_round_to_the_same_are_one():
    assert distinct_rows(np.array([[0.0, 1.0], [-0.0, 1.0 + 1e-12], [0.5, 0.5]])) == 2
