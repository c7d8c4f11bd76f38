import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.errors import ConfigError
from opmix.mixing.mixture import InterpolationWeights, Mixture, ProbeDesign

positive = st.floats(0.01, 10)


@given(st.lists(positive, min_size=1, max_size=12), st.integers(1, 10**9))
def test_tokens_add_up_to_the_budget(weights, budget):
    mixture = Mixture.normalised({f"d{i}": w for i, w in enumerate(weights)})
    tokens = mixture.tokens(budget)
    assert sum(tokens.values()) == budget
    assert all(abs(tokens[d] - mixture[d] * budget) <= 1 for d in mixture)


@given(st.lists(positive, min_size=2, max_size=6), st.lists(positive, min_size=2, max_size=6))
def test_kl_is_zero_only_at_the_prior(a, b):
    size = min(len(a), len(b))
    p, q = (Mixture.normalised({f"d{i}": w for i, w in enumerate(x[:size])}) for x in (a, b))
    assert p.kl(p) == pytest.approx(0, abs=1e-12)
    assert p.kl(q) >= -1e-12


def test_kl_is_infinite_where_the_prior_has_no_mass():
    assert Mixture.of({"a": 0.5, "b": 0.5}).kl(Mixture.of({"a": 1.0})) == float("inf")
    assert Mixture.of({"a": 1.0, "b": 0.0}).kl(Mixture.of({"a": 0.5, "b": 0.5})) == pytest.approx(np.log(2))


def test_equal_mixtures_are_one_in_a_set_and_others_are_not():
    one, same = Mixture.of({"a": 0.5, "b": 0.5}), Mixture.of({"a": 0.5, "b": 0.5})
    assert len({one, same, Mixture.of({"a": 0.25, "b": 0.75})}) == 2


def test_expansion_adds_overlapping_domains():
    old = Mixture.of({"web": 0.75, "code": 0.25})
    assert dict(Mixture.of({"old": 0.8, "code": 0.2}).expand({"old": old})) == pytest.approx({"web": 0.6, "code": 0.4})


def test_mixtures_are_not_interpolation_weights():
    design = ProbeDesign(("old", "new"), ("web", "math"), np.array([[0.9, 0.1], [0.1, 0.9]]))
    weights = InterpolationWeights.of({"old": 0.25, "new": 0.75})
    np.testing.assert_allclose(design.mixture_of(weights).weights, design.R.T @ [0.25, 0.75], rtol=1e-5, atol=1e-8)
    with pytest.raises(TypeError, match="InterpolationWeights"):
        design.mixture_of(Mixture.of({"old": 0.5, "new": 0.5}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="probes"):
        design.mixture_of(InterpolationWeights.of({"new": 0.5, "old": 0.5}))
    assert Mixture.of({"a": 1.0}) != InterpolationWeights.of({"a": 1.0})


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "add up to 0.9"),
        ({"a": -0.1, "b": 1.1}, "finite numbers >= 0"),
        ({"a": float("nan"), "b": 1.0}, "finite"),
        ({}, "one weight per name"),
    ],
)
def test_bad_shares_are_refused(shares, message):
    with pytest.raises(ConfigError, match=message):
        Mixture.of(shares)


def test_a_positive_share_cannot_be_lost():
    with pytest.raises(ConfigError, match="'b'"):
        Mixture.of({"a": 0.5, "b": 0.5}).on(["a", "c"])


def test_epochs():
    assert Mixture.of({"a": 0.5, "b": 0.5}).epochs(100, {"a": 25, "b": 100}) == {"a": 2.0, "b": 0.5}


def test_tokens_left_over_go_to_the_largest_remainders():
    assert Mixture.of({"a": 0.25, "b": 0.29, "c": 0.46}).tokens(10) == {"a": 2, "b": 3, "c": 5}
    assert Mixture.of({"a": 0.5, "b": 0.5}).tokens(3) == {"a": 2, "b": 1}  # equal ones: the first
