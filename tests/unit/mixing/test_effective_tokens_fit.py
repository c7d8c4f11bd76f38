import numpy as np
import pytest

from opmix.errors import LawError
from opmix.mixing import hierarchy
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
from opmix.mixing.effective_tokens_fit import Discrepancy, fit_effective_tokens
from opmix.mixing.hierarchy import Batch
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings

D = 5
NAMES = tuple(f"d{i}" for i in range(D))


def probes(seed=0, *, looks=(1.0,), noise=0.004, rho=0.6, sets=NAMES):
    """Losses of a joint probe, a probe a domain and the base model under a true law, and that law at five times the tokens."""
    rng = np.random.default_rng(seed)
    R = np.vstack([np.full(D, 1 / D), 0.9 * np.eye(D) + 0.1 / D])
    mixtures = np.vstack([R] * len(looks) + [R[:1]])
    tokens = np.append(np.repeat(looks, D + 1), 0.0)
    names = [f"p{i}" for i in np.tile(np.arange(D + 1), len(looks))] + ["base"]
    E = len(sets)
    foreign = np.where(np.eye(E, D) > 0, 0.0, rng.normal(-4, 1, (E, D)))
    worth = np.exp(rng.normal(2, 1, (E, 1)) + foreign)
    law = EffectiveTokensLaw(
        sets, NAMES, rng.uniform(3, 5, E), np.exp(rng.normal(-2.5, 0.4, E)), worth, rho, Tokens(5.0, np.full(D, np.inf))
    )
    losses = law.base - law.b * np.log1p((tokens[:, None] * mixtures) ** rho @ worth.T)
    return mixtures, tokens * 1000, losses + noise * rng.standard_normal(losses.shape), names, law


def fitted(data, **kwargs):
    mixtures, tokens, losses, names, law = data
    return fit_effective_tokens(
        mixtures, tokens, losses, domains=NAMES, metrics=law.metrics, probes=names, stage_tokens=5000, **kwargs
    )


def gains(law, mixtures):
    losses = law.predict(np.vstack([np.full(D, 1 / D), mixtures])).mean(axis=-1)
    return losses[..., :1] - losses[..., 1:]


def test_the_jacobian_is_the_predictions_own():
    rng = np.random.default_rng(0)
    batch = Batch(
        rng.random((3, 8, D)),
        np.arange(3),
        np.zeros((3, 8)),
        np.ones((3, 8)),
        np.zeros((3, D + 3)),
        np.ones((3, D + 3)),
    )
    theta = rng.normal(0, 1, (3, D + 3))
    step = 1e-6
    numeric = [
        (batch.evaluate(theta + step * row)[0] - batch.evaluate(theta - step * row)[0]) / (2 * step)
        for row in np.eye(D + 3)
    ]
    np.testing.assert_allclose(batch.evaluate(theta)[1], np.stack(numeric, axis=2), rtol=1e-5, atol=1e-8)


def test_looks_tell_the_law_that_made_the_losses():
    data = probes(looks=(0.125, 0.25, 0.5, 1.0), noise=0.001)
    fit = fitted(data)
    assert fit.hierarchy.rho[fit.hierarchy.best] == pytest.approx(0.6)
    P = np.random.default_rng(1).dirichlet(np.ones(D), 20)
    difference = gains(fit.law, P) - gains(data[-1], P)
    assert np.sqrt(np.mean(difference**2)) < 0.1 * gains(data[-1], P).std()
    assert np.all(fit.hierarchy.hyper.noise[fit.hierarchy.best] < 0.004)


def test_priors_are_centred_and_wide_as_the_sets_at_hand_are():
    """Beside what is known beforehand, which counts as `_STRENGTH` further sets; what is unsure of each set widens them."""
    data = probes(noise=0.001, looks=(0.125, 0.25, 0.5, 1.0))
    found = fitted(data).hierarchy
    theta, hyper, best = found.theta[found.best], found.hyper, found.best
    before = (np.log(np.median(np.ptp(data[2], axis=0)) / 2), hierarchy._MEAN[1])
    for group, column in ((0, 1), (1, 2)):  # log b and the level
        told = np.append(theta[:, column], [before[group]] * int(hierarchy._STRENGTH))
        square = ((told - told.mean()) ** 2).sum() + hierarchy._STRENGTH * hierarchy._SPREAD[group] ** 2
        assert hyper.mean[best, group] == pytest.approx(told.mean(), rel=0.05)
        assert 0.95 < hyper.spread[best, group] / np.sqrt(square / len(told)) < 1.3


def test_a_set_without_a_domain_of_its_own_is_free_to_value_any():
    data = probes(seed=2, sets=(*NAMES[:4], "target"), noise=0.001, looks=(0.25, 0.5, 1.0))
    worth = data[-1].worth
    worth[4] = [0.1, 20.0, 10.0, 0.1, 0.1]
    mixtures, tokens, losses, names, law = data
    losses[:, 4] = law.base[4] - law.b[4] * np.log1p((tokens[:, None] / 1000 * mixtures) ** law.rho @ worth[4])
    fit = fitted((mixtures, tokens, losses, names, law))
    assert set(np.argsort(fit.law.worth[4])[-2:]) == {1, 2}
    assert fit.law.worth[0].argmax() == 0


@pytest.mark.slow
def test_intervals_of_differences_hold_the_truth_as_often_as_they_say():
    hits = []
    for seed in range(30):
        data = probes(seed, looks=((0.125, 0.25, 0.5, 1.0), (1.0,))[seed % 2], rho=(0.5, 0.6, 0.8, 1.0)[seed % 4])
        P = np.random.default_rng(seed).dirichlet(np.ones(D), 10)
        low, high = np.percentile(gains(fitted(data).draws(num_draws=200), P), [5, 95], axis=0)
        truth = gains(data[-1], P)
        hits.append(np.mean((low <= truth) & (truth <= high)))
    assert 0.8 <= np.mean(hits) <= 0.97


def test_evaluation_noise_alone_is_what_is_left_of_an_exact_fit():
    fit = fitted(probes())
    quiet, noisy = fit.exact().draws(num_draws=5), fit.draws(num_draws=5)
    assert np.ptp(quiet.b, axis=0).max() < 1e-6
    assert np.ptp(noisy.b, axis=0).min() > 1e-4
    noise = 0.01 * np.random.default_rng(0).standard_normal((5, *fit.losses.shape))
    assert np.ptp(fit.exact().draws(num_draws=5, noise=noise).b, axis=0).min() > 1e-5


def test_a_discrepancy_scales_what_is_foretold():
    data = probes()
    P = np.random.default_rng(0).dirichlet(np.ones(D), 5)
    plain, doubled = fitted(data), fitted(data, discrepancy=Discrepancy(2.0, 0.5))
    np.testing.assert_allclose(gains(doubled.law, P), 2 * gains(plain.law, P))
    assert gains(doubled.draws(), P).std() > 1.5 * gains(plain.draws(), P).std()


def test_decides_and_solves_without_a_kl_term():
    fit = fitted(probes(seed=2, noise=0.0005, looks=(0.25, 0.5, 1.0)))
    uniform = Mixture.uniform(NAMES)
    verdict = decide(
        fit,
        candidates={"current": uniform},
        reference="current",
        settings=SolveSettings(kl=0),
        decision=DecisionSettings(draws=50),
    )
    assert verdict.decision.action == "move"
    assert verdict.optimum.gap <= 1e-5
    assert verdict.mixture.weights.min() > 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m, t, y: (m[:, :-1], t, y), "expected"),
        (lambda m, t, y: (m, t, np.where(np.arange(len(y))[:, None] == 2, np.nan, y)), "losses: point 2 is nan"),
        (lambda m, t, y: (np.repeat(m[:1], len(m), axis=0), t, y), "1 different mixtures"),
    ],
)
def test_what_cannot_be_fitted_is_refused(damage, says):
    mixtures, tokens, losses, names, law = probes()
    with pytest.raises(LawError, match=says):
        fitted((*damage(mixtures, tokens, losses), names, law))
