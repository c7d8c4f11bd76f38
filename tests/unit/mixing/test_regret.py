"""What an earlier recommendation would cost, by hand."""

import numpy as np
import pytest

from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.regret import change, predicted_regret

DOMAINS = ("a", "b")
KL = 0.2


def fitted():
    shares = np.linspace(0, 1, 9)
    mixtures = np.stack([shares, 1 - shares], axis=1)
    return fit_law(mixtures, np.exp(-2 * shares)[:, None], domains=DOMAINS, metrics=("m",)), mixtures


def verdict(fit, mixtures):
    uniform = Mixture.uniform(DOMAINS)
    return decide(
        fit,
        candidates={"current": uniform},
        reference="current",
        points=[str(i) for i in range(len(mixtures))],
        settings=SolveSettings(kl=KL),
        decision=DecisionSettings(draws=20),
    )


def cost(p):
    """Loss and KL to the uniform mixture."""
    shares = np.array([p, 1 - p])
    inside = shares[shares > 0]
    return np.exp(-2 * p) + KL * np.sum(inside * np.log(inside / 0.5))


def test_an_earlier_mixture_costs_its_loss_and_its_kl():
    fit, mixtures = fitted()
    found = verdict(fit, mixtures)
    best = found.mixture["a"]
    for before in (0.5, 0.95):
        expected = cost(before) - cost(best)
        assert change(found, fit, Mixture.of({"a": before, "b": 1 - before})) == pytest.approx(expected, abs=1e-4)


def test_the_recommendation_itself_costs_nothing():
    fit, mixtures = fitted()
    found = verdict(fit, mixtures)
    assert change(found, fit, found.mixture) == 0.0
    regret = predicted_regret(found, fit)
    assert 0 <= regret.interval[0] <= regret.interval[1] < 0.05  # the law is exact
    assert regret.noise == 0.0
    assert regret.spread == pytest.approx(1 - np.exp(-2))
