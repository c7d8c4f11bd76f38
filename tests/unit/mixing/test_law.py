import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.errors import LawError
from opmix.mixing.law import fit_law
from opmix.mixing.least_squares import Parameters, evaluate, fit_batch, huber
from opmix.mixing.numerics import rank_correlation

DOMAINS = tuple("abcde")


def planted(seed, num_points=24, num_domains=4, noise=0.0):
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet(np.ones(num_domains), num_points)
    t = rng.normal(0, 0.8, (3, num_domains))
    c = rng.uniform(1.5, 3, 3)
    losses = c + np.exp(mixtures @ t.T) + noise * rng.standard_normal((num_points, 3))
    return mixtures, losses, c, t


def fit(mixtures, losses, **kwargs):
    return fit_law(
        mixtures,
        losses,
        domains=DOMAINS[: mixtures.shape[1]],
        metrics=tuple(f"m{e}" for e in range(losses.shape[1])),
        **kwargs,
    )


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_planted_laws_are_recovered(seed):
    mixtures, losses, c, t = planted(seed)
    fitted = fit(mixtures, losses)
    unseen = np.random.default_rng(seed + 1).dirichlet(np.ones(4), 200)
    assert np.abs(fitted.law.predict(unseen) - (c + np.exp(unseen @ t.T))).max() < 2e-3
    assert max(q.rmse for q in fitted.quality) < 1e-4


def test_permuting_domains_permutes_coefficients():
    mixtures, losses, *_ = planted(3, noise=1e-3)
    order = [2, 0, 3, 1]
    straight, permuted = fit(mixtures, losses), fit(mixtures[:, order], losses)
    np.testing.assert_allclose(permuted.law.t, straight.law.t[:, order], atol=1e-4, rtol=1e-5)


def test_a_line_is_a_normal_design():
    """Old data keep their proportions: the design has rank two in three domains."""
    share = np.linspace(0.1, 0.9, 9)
    mixtures = np.stack([(1 - share) * 0.7, (1 - share) * 0.3, share], axis=1)
    losses = np.stack([2 + np.exp(-0.4 + 0.8 * share), 1.5 + np.exp(0.5 - 1.2 * share)], axis=1)
    fitted = fit(mixtures, losses)
    assert fitted.law.rank == 2
    assert np.abs(fitted.law.predict(mixtures) - losses).max() < 1e-5
    assert np.isfinite(fitted.law.t).all()


def test_the_fit_is_deterministic_and_robust_to_an_outlier():
    mixtures, losses, c, t = planted(5, num_points=40)
    spoiled = losses.copy()
    spoiled[7] += 1.0
    first, second = fit(mixtures, spoiled), fit(mixtures, spoiled)
    assert np.array_equal(first.law.t, second.law.t)
    centre = np.full((1, 4), 0.25)
    assert np.abs(first.law.predict(centre) - (c + np.exp(centre @ t.T))).max() < 0.02


def test_leave_one_out_is_a_real_refit():
    mixtures, losses, *_ = planted(11, num_points=14, noise=5e-3)
    fitted = fit(mixtures, losses)
    without = fit(np.delete(mixtures, 4, axis=0), np.delete(losses, 4, axis=0))
    np.testing.assert_allclose(without.law.predict(mixtures[4])[0], fitted.loo[4], atol=2e-3, rtol=1e-5)
    for left_out, told in (
        (fitted.loo, [q.loo_rmse for q in fitted.quality]),
        (fitted.fitted, [q.rmse for q in fitted.quality]),
    ):
        np.testing.assert_allclose(told, np.sqrt(np.mean((losses - left_out) ** 2, axis=0)), rtol=1e-9)
    assert all(q.loo_rmse > q.rmse for q in fitted.quality)


def test_an_interference_term_is_told_from_the_mixture():
    mixtures, losses, c, t = planted(2, num_points=30)
    v = np.random.default_rng(0).uniform(0, 2, 30)
    fitted = fit(mixtures, losses + 0.05 * v[:, None], interference=v)
    np.testing.assert_allclose(fitted.law.gamma, 0.05, atol=1e-3, rtol=1e-5)
    centre = np.full((1, 4), 0.25)
    assert np.abs(fitted.law.predict(centre) - (c + np.exp(centre @ t.T))).max() < 5e-3


def test_gradient_agrees_with_differences():
    law = fit(*planted(1)[:2]).law
    p, step = np.full(4, 0.25), 1e-6
    numeric = np.stack(
        [(law.predict(p + step * e)[0] - law.predict(p - step * e)[0]) / (2 * step) for e in np.eye(4)],
        axis=1,
    )
    np.testing.assert_allclose(law.gradient(p), numeric, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p[:4], y[:4]), "different mixtures"),
        (lambda p, y: (np.repeat(p[:1], 9, axis=0), y[:9]), "same mixture"),
        (lambda p, y: (p, np.where(np.arange(len(y))[:, None] == 3, np.nan, y)), "point 3: loss 'm0' is nan"),
        (lambda p, y: (p, np.full_like(y, 2.0)), "same loss at every point"),
        (lambda p, y: (p, y[:-1]), "do not fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    mixtures, losses, *_ = planted(0, num_points=12)
    with pytest.raises(LawError, match=message):
        fit(*change(mixtures, losses))


def test_batched_fit_equals_single_fits():
    mixtures, losses, *_ = planted(8, num_points=16, noise=2e-3)
    start = Parameters(np.full(3, 1.0), np.zeros((3, 4)), np.zeros(3))
    bounds = (np.zeros(3), losses.mean(axis=0))
    together, value = fit_batch(mixtures, losses.T, start, c_bounds=bounds, max_iterations=200)
    for e in range(3):
        one = slice(e, e + 1)
        alone, single = fit_batch(
            mixtures,
            losses.T[one],
            start.take(np.array([e])),
            c_bounds=(bounds[0][one], bounds[1][one]),
            max_iterations=200,
        )
        np.testing.assert_allclose(single[0], value[e], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            evaluate(mixtures, None, alone)[0][0], evaluate(mixtures, None, together)[0][e], atol=1e-5, rtol=1e-5
        )


def test_the_optimum_agrees_with_scipy():
    from scipy.optimize import least_squares

    mixtures, losses, *_ = planted(21, num_points=20, noise=0.01)
    fitted = fit(mixtures, losses)
    for e in range(3):
        runs = [
            least_squares(
                lambda x, e=e: x[0] + np.exp(mixtures @ x[1:]) - losses[:, e],
                np.r_[c0, np.zeros(4)],
                loss="huber",
                f_scale=0.02,
            )
            for c0 in (0.0, 1.0, 2.0)
        ]
        best = min(runs, key=lambda r: r.cost)
        ours = huber(losses[:, e] - fitted.fitted[:, e], 0.02).sum()
        assert ours <= best.cost * (1 + 1e-4) or best.x[0] < 0


def test_rank_correlation_agrees_with_scipy():
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).normal(size=(2, 30))
    a[3] = a[5]
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(30)) == 0.0
