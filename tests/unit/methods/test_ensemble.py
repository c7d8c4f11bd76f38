"""Ensembles of experts' predictions: what weights are best, and the rule that needs none."""

import numpy as np
import pytest
from fake_bench import stage_of
from scipy.optimize import minimize

from opmix.methods.ensemble import Ensemble, best_weights, losses_at
from opmix.methods.registry import METHODS
from opmix.mixing.mixture import Mixture
from opmix.testing import FakeContext, log_linear_surface


def experts(seed, vocabulary=12, count=3):
    """Unigram models (K, V)."""
    return np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.3), count)


def test_text_of_a_mixture_gets_that_mixtures_weights():
    truth, P = np.array([0.6, 0.3, 0.1]), experts(0)
    tokens = np.random.default_rng(1).choice(P.shape[1], size=40_000, p=truth @ P)
    found = best_weights([-np.log(P[:, tokens])], np.ones(1))
    assert found == pytest.approx(truth, abs=0.03)


def test_no_other_weights_are_better():
    rng = np.random.default_rng(2)
    tables = [rng.gamma(2.0, 2.0, (4, 300)) for _ in range(3)]
    omega = np.array([0.5, 0.2, 0.3])
    named = {str(e): t for e, t in enumerate(tables)}

    def value(theta):
        w = np.exp(theta - theta.max())
        return float(losses_at(named, w[None] / w.sum())[0] @ omega)

    best = min(float(minimize(value, rng.normal(size=4)).fun) for _ in range(5))
    found = float(losses_at(named, best_weights(tables, omega)[None])[0] @ omega)
    assert found == pytest.approx(best, abs=2e-4)


def test_losses_below_every_float_leave_finite_weights():
    table = np.array([[800.0, 1000.0], [1000.0, 800.0]])
    assert best_weights([table], np.ones(1)) == pytest.approx([0.5, 0.5])


def test_the_domain_that_serves_the_sets_gets_most_of_the_mixture():
    helps = [[-2.0, 0.0, 0.0]] * 3
    stage = stage_of(("web", "code", "math"))
    context = FakeContext(problem=stage, surface=log_linear_surface(helps))
    for pooled in (True, False):
        proposal = Ensemble(pooled=pooled).propose(context)
        assert max(proposal.mixture, key=proposal.mixture.__getitem__) == "web"
    assert np.allclose(context.calls[-1].design.R, np.eye(3))


def test_the_old_mixture_is_one_expert():
    stage = stage_of(("web", "code", "math"), old={"web": 0.7, "code": 0.3})
    context = FakeContext(problem=stage, surface=log_linear_surface([[0.0] * 3] * 3))
    mixture = Ensemble().propose(context).mixture
    assert context.calls[-1].design.probes == ("old", "math")
    assert mixture["web"] / mixture["code"] == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("sizes", "epochs", "wanted"),
    [
        ((900, 900, 900), 1.0, (1 / 3, 1 / 3, 1 / 3)),
        ((60, 1000, 1000), 2.0, (0.12, 0.44, 0.44)),
        ((60, 300, 10_000), 1.0, (0.06, 0.3, 0.64)),
        ((10, 20, 70), 1.0, (0.1, 0.2, 0.7)),
    ],
)
def test_unimax_is_uniform_up_to_its_caps(sizes, epochs, wanted):
    stage = stage_of(("a", "b", "c"), sizes=sizes, budget=1000)
    context = FakeContext(problem=stage, surface=log_linear_surface([[0.0] * 3] * 3))
    proposal = METHODS["unimax"].make({"epochs": epochs}).propose(context)
    assert proposal.mixture == Mixture(("a", "b", "c"), proposal.mixture.weights)
    assert proposal.mixture.weights == pytest.approx(wanted)
