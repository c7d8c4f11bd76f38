"""Laws from values and slopes: the chain rule with interference, recovery from few points, and an honest posterior."""

import numpy as np
import pytest

from opmix.errors import LawError
from opmix.mixing.design import interference
from opmix.mixing.law import fit_law
from opmix.mixing.posterior import draw_laws, resampling_noise
from opmix.mixing.slopes import corrected_slopes, slope_table, towards_probes, value_noise

DOMAINS = ("a", "b", "c", "d")
TOKENS = tuple(np.full(40, 100.0) for _ in DOMAINS)


def world(num_points, *, gamma=0.0, noise=0.0, seed=0):
    """A world in which the law holds: weights, losses and slopes of proxies of five probes."""
    rng = np.random.default_rng(seed)
    t = -0.8 * np.eye(4) + 0.1 * rng.standard_normal((4, 4))
    m = np.full(4, 0.25)
    R = np.array([m, *(0.9 * e + 0.1 * m for e in np.eye(4))])
    root = rng.standard_normal((5, 8))
    gram = root @ root.T / 40
    weights = np.array([np.eye(5)[0], *rng.dirichlet(np.ones(5), num_points - 1)])
    growth = np.exp(weights @ R @ t.T)  # (M, E)
    losses = 2.0 + growth + gamma * interference(weights, gram)[:, None]
    pull = np.diag(gram) - 2 * weights @ gram  # (M, P)
    slopes = growth[:, :, None] * (t @ R.T)[None] + gamma * pull[:, None, :]  # (M, E, P)
    sums = [100.0 * (slopes[:, e, None] + noise * rng.standard_normal((num_points, 40, 5))) for e in range(4)]
    nll = tuple(TOKENS[0] * (losses[:, e, None] + noise * rng.standard_normal((num_points, 40))) for e in range(4))
    return R, gram, weights, losses, slopes, sums, nll, t


def fitted(num_points, with_gamma=False, **options):
    R, gram, weights, losses, _, sums, nll, t = world(num_points, **options)
    table, stacked = slope_table(weights, range(num_points), sums, TOKENS, R=R, gram=gram, value_noise=0.01)
    v = interference(weights, gram) if with_gamma else None
    fit = fit_law(weights @ R, losses, domains=DOMAINS, metrics=DOMAINS, interference=v, slopes=table)
    return fit, t, table, stacked, nll


def test_directions_keep_the_sum_of_weights():
    R, gram, weights, _, slopes, sums, _, _ = world(3, gamma=0.05)
    table, stacked = slope_table(weights, range(3), sums, TOKENS, R=R, gram=gram, value_noise=0.01)
    assert len(table) == 4 + 5 + 5  # none from the first probe towards itself
    assert np.allclose(table.directions.sum(axis=1), 0)
    assert np.allclose(table.losses[4:9], towards_probes(weights[1], slopes[1]).T)
    step = 1e-5
    w = weights[1] + step * (np.eye(5)[2] - weights[1])
    change = (interference(w, gram) - interference(weights[1], gram)) / step
    assert table.interference[6] == pytest.approx(change[0], rel=1e-3)
    assert [rows.shape for rows in stacked] == [(14, 40)] * 4


@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_two_points_with_slopes_tell_what_two_without_cannot(gamma):
    fit, t, *_ = fitted(3, with_gamma=gamma > 0, gamma=gamma)
    somewhere = np.random.default_rng(1).dirichlet(np.ones(4), 20)
    assert np.allclose(fit.law.predict(somewhere), 2 + np.exp(somewhere @ t.T), atol=2e-3)
    if gamma:
        assert np.allclose(fit.law.gamma, gamma, atol=2e-3)
    R, _, weights, losses, *_ = world(3)
    with pytest.raises(LawError, match="expected at least"):
        fit_law(weights @ R, losses, domains=DOMAINS, metrics=DOMAINS)


def test_slopes_count_by_their_noise():
    _, _, table, _, nll = fitted(6, noise=0.05)
    expected = 0.05 / np.sqrt(40)
    assert value_noise(nll, TOKENS) == pytest.approx(expected * np.sqrt(5 / 6), rel=0.1)
    assert 0.2 < table.scale * expected / 0.01 < 1.2  # towards a probe: between one and two slopes' noise


def test_draws_spread_with_the_noise_and_stay_on_the_truth():
    fit, t, _, stacked, nll = fitted(5, noise=0.02)
    together = [np.concatenate([a, b]) for a, b in zip(nll, stacked, strict=True)]
    noise = resampling_noise(together, TOKENS, num_draws=60, seed=1)
    draws = draw_laws(fit, num_draws=60, noise=noise)
    centre = np.full((1, 4), 0.25)
    spread = draws.predict(centre)[:, 0].std(axis=0)
    assert np.all((spread > 1e-4) & (spread < 2e-2))
    assert np.allclose(draws.predict(centre)[:, 0].mean(axis=0), 2 + np.exp(centre @ t.T)[0], atol=1e-2)


def test_left_out_slopes_go_with_their_point():
    fit, *_ = fitted(6, gamma=0.0)
    assert fit.slope_residuals.shape[1] == 4
    assert np.abs(fit.residuals).max() < 5e-3
    assert np.abs(fit.slope_residuals).max() < 5e-2


def path_end(p, time=0.5, steps=400):
    """Gradient descent on a mixture of quadratic losses whose domains have weights of their own: (4,) weights."""
    x = np.zeros(4)
    for _ in range(steps):
        x = x + time / steps * p * (1 - x)
    return x


def test_corrected_slopes_are_those_of_training():
    """Interpolation of the paths' ends loses half of the curvature; the correction brings the slope of training back."""
    m = np.full(4, 0.25)
    R = np.array([m, *(0.9 * e + 0.1 * m for e in np.eye(4))])
    ends = np.array([path_end(p) for p in R])  # each probe's weights
    losses = 0.5 * (1 - ends) ** 2  # (P, E)
    gradients = -(1 - ends)[:, :, None] * ends.T[None]  # (P, E, P): d loss_e / d w_k at each probe, deltas = ends
    nll = [100 * np.outer(losses[:, e], np.ones(40)) for e in range(4)]
    sums = [100 * gradients[:, e, None, :] * np.ones((1, 40, 1)) for e in range(4)]
    pairs = [(0, k) for k in range(1, 5)]
    table, _ = corrected_slopes(pairs, nll, sums, TOKENS, R=R, value_noise=1.0)
    step = 1e-4
    true = np.array([(0.5 * (1 - path_end(m + step * (R[k] - m))) ** 2 - losses[0]) / step for k in range(1, 5)])
    raw = np.array([gradients[0, :, k] - gradients[0, :, 0] for k in range(1, 5)])
    own = np.eye(4, dtype=bool)
    assert np.abs(table.losses - true).max() < 0.25 * np.abs(raw - true).max()
    assert np.allclose(table.losses[own], true[own], rtol=0.05)
    assert np.all(raw[own] / true[own] < 0.95)
    assert np.allclose(table.directions.sum(axis=1), 0)
