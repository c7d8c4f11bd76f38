"""Limits on losses held by the upper end of what is foretold, on laws and surfaces that the test knows."""

import numpy as np
import pytest

from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
from opmix.mixing.effective_tokens_fit import Discrepancy, fit_effective_tokens
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.safe_limits import TOLERANCE, limits_at, solve_safely, tightened
from opmix.mixing.solver import solve

NAMES = ("a", "b", "c")
UNIFORM = np.full(3, 1 / 3)
WORTH = np.array([[9.0, 0.3, 0.2], [0.3, 9.0, 0.2], [0.2, 0.3, 9.0]])


def fitted(spread=0.5, factor=3.0, **other):
    """Of a joint probe and one a domain, nine tenths its own; each looked at twice."""
    R = np.vstack([UNIFORM, 0.85 * np.eye(3) + 0.05])
    mixtures, tokens = np.vstack([R, R]), np.repeat([1000.0, 500.0], 4)
    law = EffectiveTokensLaw(
        NAMES, NAMES, np.full(3, 3.0), np.full(3, 0.1), WORTH, 0.6, Tokens(1.0, np.full(3, np.inf))
    )
    losses = law.base - law.b * np.log1p((tokens[:, None] / 1000 * mixtures) ** 0.6 @ WORTH.T)
    return fit_effective_tokens(
        mixtures,
        tokens,
        losses,
        domains=NAMES,
        metrics=NAMES,
        probes=["p0", "p1", "p2", "p3"] * 2,
        stage_tokens=4000,
        discrepancy=Discrepancy(factor, spread),
        **other,
    )


FIT = fitted(reference=UNIFORM)
DRAWS = FIT.draws(num_draws=60)
ALONE = SolveSettings(objective="weighted", omega=np.array([0.0, 0.0, 1.0]), kl=0.0)
PROBLEM = {"coordinates": Coordinates.identity(NAMES), "settings": ALONE}


def limits(**over):
    """Limits at the reference's own foretold losses, and so much above, nats."""
    at = dict(zip(NAMES, FIT.law.predict(UNIFORM)[0], strict=True))
    return Constraints(max_loss={m: at[m] + x for m, x in over.items()}, current_loss=at)


def test_the_discrepancy_is_one_of_differences_to_the_mixture_in_use():
    plain = fitted(factor=1.0)
    P = np.vstack([UNIFORM, np.eye(3)])
    ours, theirs = FIT.law.predict(P), plain.law.predict(P)
    assert ours[0] == pytest.approx(theirs[0])
    assert ours[1:] - ours[0] == pytest.approx(3.0 * (theirs[1:] - theirs[0]))
    whole = fitted().law.predict(P)
    assert whole[1:] - whole[0] == pytest.approx(ours[1:] - ours[0])
    assert np.all(whole[0] < ours[0])


def test_draws_differ_at_the_mixture_in_use_by_less_than_elsewhere():
    spread = DRAWS.predict(np.vstack([UNIFORM, np.eye(3)[2]])).std(axis=0)
    assert np.all(spread[0] < 0.5 * spread[1])


def test_the_upper_end_keeps_the_limit_and_goes_as_far_as_it():
    told = limits(a=0.1)
    plain = solve(FIT.law, constraints=told, **PROBLEM).mixture
    safe = solve_safely(FIT.law, DRAWS, constraints=told, **PROBLEM).mixture
    (loose,), (kept,) = (limits_at(m, FIT.law, DRAWS, told) for m in (plain, safe))
    assert not loose.kept
    assert kept.kept
    assert kept.binds
    assert kept.interval[1] <= kept.limit + TOLERANCE
    drawn = DRAWS.predict(safe.weights)[:, 0, 0]
    assert np.mean(drawn <= told.max_loss["a"] + TOLERANCE) >= 0.78
    assert safe["c"] < plain["c"]


def test_a_limit_that_is_kept_anyway_changes_nothing():
    told = limits(a=2.0)
    plain, safe = (
        solve(FIT.law, constraints=told, **PROBLEM),
        solve_safely(FIT.law, DRAWS, constraints=told, **PROBLEM),
    )
    assert plain.mixture == safe.mixture
    (found,) = limits_at(safe.mixture, FIT.law, DRAWS, told)
    assert found.kept
    assert not found.binds


def test_where_no_mixture_keeps_it_for_sure_the_nearest_is_taken():
    told = limits(a=0.0, b=0.0, c=0.0)
    told = Constraints(max_loss={m: x + 5e-5 for m, x in told.max_loss.items()}, current_loss=told.current_loss)
    wide = fitted(reference=UNIFORM).draws(num_draws=60, noise=0.05 * np.random.default_rng(0).normal(size=(60, 8, 3)))
    found = solve_safely(FIT.law, wide, constraints=told, **PROBLEM).mixture
    at = limits_at(found, FIT.law, wide, told)
    assert not all(x.kept for x in at)
    assert all(x.foretold <= x.limit + TOLERANCE for x in at)


def test_limits_of_others_beside_it_are_met_by_the_mixture_itself():
    told = limits(a=0.1)
    safe = solve_safely(FIT.law, DRAWS, constraints=told, **PROBLEM).mixture
    lower = tightened(told, limits_at(safe, FIT.law, DRAWS, told))
    assert lower.max_loss["a"] < told.max_loss["a"]
    assert lower.violation(safe, dict(zip(NAMES, FIT.law.predict(safe.weights)[0], strict=True))) <= 1e-6


def test_a_decision_holds_limits_by_the_upper_end_where_asked():
    told, current = limits(a=0.1), {"current": Mixture.uniform(NAMES)}
    settings = {"settings": ALONE, "constraints": told, "decision": DecisionSettings(draws=60)}
    ends = [
        decide(FIT, candidates=current, reference="current", safe_limits=safe, **settings).limits(FIT.law)[0].kept
        for safe in (False, True)
    ]
    assert ends == [False, True]
