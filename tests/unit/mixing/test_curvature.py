"""The law in coordinates of slope and curvature: the same law, and its derivatives."""

import numpy as np
import pytest

from opmix.mixing.curvature import CurvatureForm
from opmix.mixing.least_squares import MAX_EXPONENT, Parameters, evaluate

K, M = 5, 12


@pytest.fixture
def laws():
    rng = np.random.default_rng(0)
    Z, v = rng.dirichlet(np.ones(K), M), rng.uniform(0, 1, M)
    params = Parameters(np.array([1.5, 0.0, 1.9]), rng.normal(0, 0.4, (3, K)), rng.normal(0, 0.1, 3))
    at = params.take(np.array([0]))
    return CurvatureForm.near(Z, v, np.ones(K), at), params


def test_coordinates_are_the_same_law(laws):
    form, params = laws
    theta = form.theta(params)
    back = form.parameters(theta)
    for name in ("c", "z", "gamma"):
        np.testing.assert_allclose(getattr(back, name), getattr(params, name), atol=1e-12)
    np.testing.assert_allclose(form.told(theta).predicted, evaluate(form.Z, form.v, params)[0], atol=1e-12)


def test_derivatives_are_those_of_the_predictions(laws):
    form, params = laws
    theta = form.theta(params)
    told = form.told(theta)
    pull = np.random.default_rng(1).standard_normal((3, M))
    step = 1e-6
    for column, analytic in enumerate(form.pulled(pull, told).T):
        up, down = theta.copy(), theta.copy()
        up[:, column] += step
        down[:, column] -= step
        slope = (form.told(up).predicted - form.told(down).predicted) / (2 * step)
        np.testing.assert_allclose(analytic, (pull * slope).sum(axis=1), rtol=1e-5, atol=1e-7)
    one = form.told(theta[:1])
    np.testing.assert_allclose(pull[:1] @ form.jacobian(one), form.pulled(pull[:1], one), atol=1e-12)


def test_slopes_do_not_follow_the_curvature(laws):
    """What the coordinates are for: another curvature with the same slopes changes predictions in second order only."""
    form, params = laws
    Z, flat = form.Z, 0.01 * params.z[:1]
    law = Parameters(np.array([1.5]), flat, np.zeros(1))
    form = CurvatureForm.near(Z, None, np.ones(K), law)
    theta = form.theta(law)
    bent = theta.copy()
    bent[:, 0] *= 1.5
    moved = np.abs(form.told(bent).predicted - form.told(theta).predicted).max()
    assert moved < 0.5 * np.ptp(form.told(theta).predicted) ** 2


def test_what_leaves_the_bounds_is_brought_back(laws):
    form, params = laws
    theta = form.theta(params)
    theta[:, 2:] *= 1e4
    theta[0, 0] = 0.0
    bounds = form.bounds(np.full(3, 1.95))
    inside = form.parameters(form.inside(theta, bounds))
    assert np.all((inside.c >= 0) & (inside.c <= 1.95 + 1e-9))
    np.testing.assert_array_less(np.linalg.norm(inside.z, axis=1), MAX_EXPONENT * (1 + 1e-9))
