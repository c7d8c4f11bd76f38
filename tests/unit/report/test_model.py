"""The laws as arrays: predictions, positions among the coordinates, paired intervals."""

import numpy as np
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from opmix.errors import StoreError
from opmix.report import load_report_data
from opmix.report.model import build_model


@pytest.fixture(scope="module")
def continual(folders):
    return build_model(load_report_data(folders["continual"]))


def test_predictions_are_the_laws(continual):
    world = samples.continual_world()
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.2, 0.0]])
    np.testing.assert_allclose(continual.predict(p), world.losses(p), rtol=0, atol=1e-12)
    assert continual.collapsed
    assert continual.coordinates == ("old", "math")


def test_a_mixture_on_the_coordinates_is_found_and_one_off_them_is_not(continual):
    for share in (0.0, 0.3, 1.0):
        x = np.array([1 - share, share])
        np.testing.assert_allclose(continual.position(continual.A.T @ x), x, atol=1e-9, rtol=1e-5)
    assert continual.position(np.full(4, 0.25)) is None


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda x: sum(x) > 1e-3),
    st.integers(0, 2),
    st.floats(0, 1),
)
def test_a_profile_moves_one_share_and_keeps_the_others_proportions(weights, index, share):
    world = samples.make_world(("a", "b", "c"), ("m",))
    model = _model_of(world)
    base = np.array(weights) / sum(weights)
    p = model.profile(base, index, np.array([share]))[0]
    assert p.sum() == pytest.approx(1)
    assert p[index] == pytest.approx(share)
    i, j = (k for k in range(3) if k != index)
    if base[i] + base[j] > 1e-6:
        assert p[i] * base[j] == pytest.approx(p[j] * base[i], abs=1e-9)


def _model_of(world):
    from opmix.report.document import ReportData
    from opmix.results.mixture import LawEntry, MixtureFile

    laws = {
        m: LawEntry(c=float(world.c[e]), t=dict(zip(world.domains, world.t[e], strict=True)))
        for e, m in enumerate(world.metrics)
    }
    uniform = dict.fromkeys(world.domains, 1 / len(world.domains))
    return build_model(ReportData(document=MixtureFile(kind="fit", mixture=uniform, laws=laws)))


def test_a_change_to_itself_is_certainly_nothing_because_draws_are_paired(continual):
    p = continual.vector({"math": 0.4, "web": 0.6})
    point, interval = continual.change(p, p)
    assert np.all(point == 0)
    assert np.all(interval == 0)
    other = continual.vector({"math": 1.0})
    low, high = continual.change(other, p)[1]
    unpaired = continual.band(other)[1] - continual.band(p)[0]
    assert np.all(high - low < unpaired - (continual.band(other)[0] - continual.band(p)[1]) + 1e-12)


def test_the_band_is_the_quantiles_of_the_draws(continual):
    p = continual.vector({"math": 0.4, "web": 0.6})
    drawn = continual.draws.c + np.exp(continual.draws.t @ p)
    low, high = continual.band(p)
    np.testing.assert_allclose(low[0], np.quantile(drawn, 0.05, axis=0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(high[0], np.quantile(drawn, 0.95, axis=0), rtol=1e-5, atol=1e-8)


def test_weights_follow_a_weighted_objective(edited):
    def weigh(document):
        document["settings"] |= {"objective": "weighted", "weights": {"math": 3.0, "web": 1.0}}

    model = build_model(load_report_data(edited(weigh)))
    assert dict(zip(model.metrics, model.weights, strict=True)) == {"medical": 0, "web": 0.25, "code": 0, "math": 0.75}


def test_contradictions_between_the_files_are_errors(edited):
    with pytest.raises(StoreError, match="laws lack an exponent for web/math"):
        build_model(load_report_data(edited(lambda d: d["laws"]["web"]["t"].pop("math"))))
    with pytest.raises(StoreError, match="have no mixture, or name unknown domains"):
        build_model(load_report_data(edited(lambda d: d["coordinates"]["mixtures"].pop("old"))))
    draws = {"c": [[1.0]], "t": [[[0.0]]], "metrics": ["web"], "domains": ["web"]}
    with pytest.raises(StoreError, match=r"law_draws\.json: lacks"):
        build_model(load_report_data(edited(lambda d: None, law_draws=draws)))


def test_the_band_of_a_change_has_no_width_at_its_reference(continual):
    p = continual.vector({"math": 0.4, "web": 0.6})
    low, high = continual.change_band(np.stack([p, continual.vector({"math": 1.0})]), p)
    np.testing.assert_allclose(low[0], continual.predict(p)[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(high[0], low[0], rtol=1e-5, atol=1e-8)
    assert np.all(high[1] > low[1])
