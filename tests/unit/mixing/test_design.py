import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.errors import ConfigError
from opmix.mixing.design import coordinates_of, design_stage, interference
from opmix.mixing.mixture import Mixture


def test_one_new_domain_is_a_line_from_10_to_90_percent():
    old = Mixture.of({"web": 0.7, "code": 0.3})
    design = design_stage(("web", "code", "math"), old)
    assert design.coordinates.names == ("old", "math")
    assert dict(design.probes.row("old")) == pytest.approx({"web": 0.63, "code": 0.27, "math": 0.1})
    assert dict(design.probes.row("math")) == pytest.approx({"web": 0.07, "code": 0.03, "math": 0.9})
    np.testing.assert_allclose(design.mixtures[:, 0] * 0.3, design.mixtures[:, 1] * 0.7, rtol=1e-5, atol=1e-8)
    assert design.mixtures[:, 2].min() >= 0.1 - 1e-9
    assert design.mixtures[:, 2].max() <= 0.9 + 1e-9
    assert all(design.fitted)


@pytest.mark.parametrize("num_points", range(4, 41))
def test_any_number_of_points_on_a_line_can_be_interpolated(num_points):
    design = design_stage(["a", "b"], Mixture.of({"a": 1.0}), num_points=num_points)
    inner = np.array([w.weights for w in design.points[4:]])
    assert len(inner) == num_points - num_points % 2  # an odd number has the centre, which is the twin already
    assert np.all(inner >= 0)
    np.testing.assert_allclose(inner.sum(axis=1), 1, rtol=1e-5, atol=1e-8)


def test_the_published_design_has_nine_points_and_two_probes():
    design = design_stage(("web", "math"), Mixture.of({"web": 1.0}), joint=False, num_points=7)
    assert design.probes.probes == ("old", "math")
    assert sorted(design.mixtures[:, 1]) == pytest.approx(np.linspace(0.1, 0.9, 9))
    assert design.twins == ()


@given(st.integers(2, 6), st.integers(0, 3), st.integers(0, 1000))
def test_twins_stand_for_the_same_mixture(num_old, num_new, seed):
    rng = np.random.default_rng(seed)
    names = [f"o{i}" for i in range(num_old)]
    old = Mixture(names, rng.dirichlet(np.ones(num_old)))
    design = design_stage([*names, *(f"n{i}" for i in range(num_new))], old, seed=seed)
    assert len(design.twins) == 1
    for a, b in design.twins:
        np.testing.assert_allclose(design.mixtures[a], design.mixtures[b], atol=1e-12, rtol=1e-5)
        assert not np.allclose(design.points[a].weights, design.points[b].weights)
    np.testing.assert_allclose(design.mixtures.sum(axis=1), 1, rtol=1e-5, atol=1e-8)
    assert len(design.points) == len(design.names) == len(design.kinds) == len(design.fitted)


def test_rebalancing_leaves_specialised_probes_out_of_the_fit():
    design = design_stage(("a", "b", "c"), None)
    assert design.probes.probes == ("old", "a", "b", "c")
    assert design.fitted[:4] == (True, False, False, False)
    assert all(design.fitted[4:])


def test_too_few_points_for_the_domains_are_refused():
    with pytest.raises(ConfigError, match="points in all"):
        design_stage(tuple(f"d{i}" for i in range(12)), None, num_points=4)


def test_interference_is_zero_at_a_probe_and_the_variance_between():
    deltas = np.random.default_rng(0).normal(size=(3, 7))
    gram = deltas @ deltas.T
    w = np.array([0.2, 0.3, 0.5])
    spread = (w[:, None] * (deltas - w @ deltas) ** 2).sum()
    assert interference(np.eye(3), gram) == pytest.approx(0, abs=1e-9)
    assert interference(w, gram)[0] == pytest.approx(spread)


def test_bad_designs_are_refused():
    with pytest.raises(ConfigError, match="at least two"):
        design_stage(("a",), None)
    with pytest.raises(ConfigError, match="share"):
        design_stage(("a", "b"), Mixture.of({"a": 1.0}), share=0.4)
    with pytest.raises(ConfigError, match="share"):
        design_stage(("a", "b"), None, share=0.0)
    with pytest.raises(ConfigError, match="'old' is taken"):
        coordinates_of(("old", "b"), Mixture.of({"old": 1.0}))
