"""Weights that stand for a mixture, and what the error of a simulation can cost."""

import numpy as np
import pytest

from opmix.mixing.design import design_stage
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.verification import DirectPoint, Measured, any_weights_for, curvature, sentences, weights_for

DOMAINS = ("a", "b", "c")
DESIGN = design_stage(DOMAINS, None).probes


def test_weights_stand_for_the_mixture_and_average_as_little_as_possible():
    for p in np.random.default_rng(0).dirichlet(np.ones(3) * 3, 20):
        w = weights_for(DESIGN, 0.9 * p + 0.1 / 3)
        np.testing.assert_allclose(DESIGN.mixture_of(w).weights, 0.9 * p + 0.1 / 3, atol=1e-7, rtol=1e-5)
    assert weights_for(DESIGN, np.full(3, 1 / 3))["old"] == pytest.approx(1)  # the joint probe, not the mean of three


def test_any_weights_stand_for_the_same_mixture():
    for p in np.random.default_rng(0).dirichlet(np.ones(3), 20):
        leaning, any_ = (DESIGN.mixture_of(found(DESIGN, p)).weights for found in (weights_for, any_weights_for))
        np.testing.assert_allclose(any_, leaning, atol=1e-6)


def test_out_of_reach_means_the_nearest():
    w = weights_for(DESIGN, np.array([1.0, 0.0, 0.0]))
    assert DESIGN.mixture_of(w)["a"] == pytest.approx(0.9 + 0.1 / 3, abs=1e-3)


def measured(direct, law, gap=0.0):
    names = ("proposal", *(f"probe {i}" for i in range(len(law) - 1)))
    return Measured(
        names=names, direct=np.array(direct), law=np.array(law), errors=np.full(len(law), 0.001), law_gap=gap
    )


def test_an_error_that_all_share_costs_nothing():
    assert measured([3.5, 3.6], [3.0, 3.1]).regret_bound == pytest.approx(0)
    assert measured([3.5, 3.6], [3.0, 3.1], gap=0.02).regret_bound == pytest.approx(0.02)
    flattered = measured([3.5, 3.52], [3.0, 3.1])
    assert flattered.regret == 0
    assert flattered.regret_bound == pytest.approx(0.08)
    worse = measured([3.5, 3.4, 3.6], [3.0, 3.1, 3.2])
    assert (worse.regret, worse.best, worse.rank_agreement) == (pytest.approx(0.1), 1, pytest.approx(0.5))
    assert worse.gain("probe 0") == (pytest.approx(0.1), pytest.approx(-0.1), 0.001)
    assert worse.gain("current") is None


def test_what_is_said_names_the_better_mixture_and_the_cost():
    point = DirectPoint(
        name="proposal",
        mixture=Mixture.uniform(DOMAINS),
        reached={},
        weights={},
        direct=np.array([3.5, 3.5]),
        proxy=np.array([3.4, 3.4]),
        law=np.array([3.0, 3.0]),
        error=np.array([0.01, 0.01]),
        kl=np.array([0.02, 0.04]),
    )
    said = " ".join(
        sentences(
            point, measured([3.5, 3.4, 3.6], [3.0, 3.1, 3.2]), SolveSettings(), reference="probe 0", tolerance=0.01
        )
    )
    assert "+0.1000 +- 0.0071 nats from the interpolated proxy" in said
    assert "KL of their predictions 0.0300" in said
    assert "probe 0 measured 0.1000 nats better" in said
    assert "it matters" in said
    assert "within the 0.3000" in " ".join(
        sentences(point, measured([3.5, 3.4], [3.0, 3.1]), SolveSettings(), reference="current", tolerance=0.3)
    )
    assert point.json(("x", "y"))["difference"]["x"] == pytest.approx(0.1)


def test_curvature_is_zero_for_a_plane_and_positive_for_a_bowl():
    w = np.array([[0.5, 0.5]])
    assert curvature(w, np.array([[2.0]]), np.array([[1.0], [3.0]])) == pytest.approx(0)
    assert curvature(w, np.array([[1.5]]), np.array([[1.0], [3.0]])) == pytest.approx(0.5)
