"""Two accounts of one gain: what choosing flatters is taken off, and precision weighs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.effective_tokens_fit import Discrepancy, fit_effective_tokens
from opmix.mixing.estimates import Estimate, foretold, pooled
from opmix.mixing.mixture import Mixture

NAMES = ("a", "b", "c", "d")
numbers = st.floats(-10, 10)
errors = st.floats(1e-3, 10)


@given(st.lists(st.tuples(numbers, errors), min_size=1, max_size=5))
def test_the_pooled_gain_lies_between_and_its_error_is_never_below_that_of_agreement(told):
    found = pooled([Estimate(*pair) for pair in told])
    gains = [g for g, _ in told]
    assert min(gains) - 1e-9 <= found.gain <= max(gains) + 1e-9
    assert found.error >= sum(e**-2 for _, e in told) ** -0.5 - 1e-12


def test_accounts_that_contradict_each_other_are_less_sure_than_either_alone():
    agreed, apart = pooled([Estimate(1.0, 0.1), Estimate(1.0, 0.1)]), pooled([Estimate(1.0, 0.1), Estimate(0.0, 0.1)])
    assert agreed.error == pytest.approx(0.1 / np.sqrt(2))
    assert apart.error == apart.for_sign == pytest.approx(0.5)
    larger = pooled([Estimate(1.0, 0.1), Estimate(3.0, 0.1)])
    assert larger.error > 0.9 > 0.1 > larger.for_sign  # of its size nothing is sure, of its sign everything
    assert np.isnan(pooled([Estimate(1.0, 0.1), Estimate(1.0, np.nan)]).error)


def judged(seed, slope, spread=0.0):
    """A verdict on nine noisy runs whose losses fall by `slope` with the share of the first domain."""
    rng = np.random.default_rng(seed)
    mixtures = np.vstack([np.full(4, 0.25), rng.dirichlet(np.ones(4), 8)])
    losses = 3 - slope * mixtures[:, :1] + 0.02 * rng.standard_normal((9, 1))
    fit = fit_effective_tokens(
        mixtures,
        np.full(9, 1e4),
        losses,
        domains=NAMES,
        metrics=("all",),
        probes=[str(i) for i in range(9)],
        stage_tokens=1e4,
        reference=mixtures[0],
        discrepancy=Discrepancy(1.0, spread),
    )
    verdict = decide(
        fit,
        candidates={"current": Mixture(NAMES, mixtures[0])},
        reference="current",
        decision=DecisionSettings(draws=40),
    )
    return verdict, foretold(verdict, fit.law)


@pytest.mark.slow
def test_what_choosing_flatters_is_taken_off():
    """Where mixtures change nothing, the law foretells a gain at its optimum every time, often surely; less so when corrected."""
    found = [judged(seed, 0.0) for seed in range(8)]
    raw = np.array([verdict.decision.gain for verdict, _ in found])
    corrected = np.array([estimate.gain for _, estimate in found])
    assert np.all(raw > 0)
    assert np.all(corrected <= raw)
    believed = [verdict.decision.probability >= 0.9 for verdict, _ in found]
    assert sum(estimate.gain > 1.28 * estimate.error for _, estimate in found) < sum(believed)
    assert np.any(corrected < 0)


def test_a_gain_that_is_there_survives_and_half_of_the_way_gains_less():
    verdict, whole = judged(0, 0.5)
    assert whole.gain > 4 * whole.error
    assert whole.gain <= verdict.decision.gain + 1e-9


def test_what_a_nat_is_worth_in_the_stage_is_no_error_of_the_sign():
    errors = [judged(0, 0.5, spread)[1].error for spread in (0.0, 0.8)]
    assert errors[1] == pytest.approx(errors[0], rel=0.25)
