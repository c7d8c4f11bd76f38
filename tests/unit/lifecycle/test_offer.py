"""What can be chosen from when domains run out, fixed mixtures, and budgets that cannot hold."""

import pytest
from lives import NAMES, STEP, facts, fixed, life, stage

from opmix.errors import ConfigError, DataError
from opmix.lifecycle.available_domains import available, decision_config, fixed_mixture, old_available, rejected
from opmix.lifecycle.limits import check_budgets
from opmix.lifecycle.stages import resolve
from opmix.mixing.mixture import Mixture

ROWS = dict.fromkeys(NAMES, 100)


def limited(stages, **epochs):
    domains = {n: {"train": n, **({"max_epochs": epochs[n]} if n in epochs else {})} for n in NAMES}
    return life(*stages, domains=domains)


THREE = stage("one", 8, domains=["alpha", "beta", "gamma"], prefix=0)


def decided(stage, old, drawn=None, seed=0):
    tokens = stage.tokens_in(stage.segments[0])
    return decision_config(stage, tokens, seed, old, rows=ROWS, drawn=drawn or {})


def test_domains_that_are_used_up_are_no_longer_on_offer():
    (one,) = resolve(limited([THREE], alpha=0.5, beta=2))
    assert available(one, ROWS, {}) == ("alpha", "beta", "gamma")
    assert available(one, ROWS, {"alpha": 48, "gamma": 10**6}) == ("alpha", "beta", "gamma")
    assert available(one, ROWS, {"alpha": 49, "beta": 198}) == ("beta", "gamma")
    with pytest.raises(DataError, match=r"stage 'one': \['gamma'\] left to choose from, the other domains are used up"):
        available(one, ROWS, {"alpha": 49, "beta": 199})


def test_a_decision_knows_what_is_left():
    (one,) = resolve(limited([THREE], alpha=0.5, beta=2))
    old = Mixture.of({"alpha": 0.5, "beta": 0.25, "gamma": 0.25})
    config = decided(one, old, {"alpha": 49, "beta": 40}, 7)
    assert config.old_mixture == {"beta": 0.5, "gamma": 0.5}
    assert {n: d.max_epochs for n, d in config.domains.items()} == {"beta": pytest.approx(1.59), "gamma": None}
    assert (config.budget.tokens, config.seed, config.solve.max_epochs) == (8 * STEP, 7, None)


def test_a_weighed_domain_that_is_used_up_is_weighed_no_more():
    _, two = resolve(
        limited([stage("one", 8, domains=["alpha", "beta"], prefix=0), stage("two", 8, add=["gamma"])], gamma=1)
    )
    old = Mixture.of({"alpha": 0.5, "beta": 0.5})
    assert decided(two, old).new_domains == ("gamma",)
    assert decided(two, old, {"gamma": 99}).new_domains is None


def test_what_was_turned_down_is_only_weighed_when_it_is_added_again():
    first = stage("one", 8, domains=["alpha", "beta"], prefix=0)
    old = Mixture.of({"alpha": 0.5, "beta": 0.5, "gamma": 0.0})
    _, _, three = resolve(life(first, stage("two", 8, add=["gamma"]), stage("three", 8, add=["delta"])))
    assert rejected(three, old) == ("gamma",)
    config = decided(three, old)
    assert (tuple(config.domains), config.new_domains) == (("alpha", "beta", "delta"), ("delta",))
    _, _, again = resolve(life(first, stage("two", 8, add=["gamma"]), stage("three", 8, add=["delta", "gamma"])))
    assert rejected(again, old) == ()
    assert decided(again, old).new_domains == ("delta", "gamma")


def test_the_old_mixture_without_what_was_dropped():
    _, two = resolve(life(stage("one", 8, domains=["alpha", "beta"]), stage("two", 8, add=["gamma"], drop=["beta"])))
    assert old_available(two, None) is None
    assert old_available(two, Mixture.of({"alpha": 0.2, "beta": 0.8})) == Mixture.of({"alpha": 1.0})
    with pytest.raises(DataError, match=r"stage 'two': none of the old mixture's domains \['beta'\] is on offer"):
        old_available(two, Mixture.of({"alpha": 0.0, "beta": 1.0}))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("uniform", {"alpha": 0.5, "gamma": 0.5}),
        ("size", {"alpha": 0.25, "gamma": 0.75}),
        ("current", {"alpha": 1.0, "gamma": 0.0}),
        ({"gamma": 1.0}, {"alpha": 0.0, "gamma": 1.0}),
    ],
)
def test_fixed_mixtures(wanted, expected):
    before = fixed("one", 8, domains=["alpha", "beta"])
    _, two = resolve(life(before, stage("two", 8, add=["gamma"], drop=["beta"], mixture=wanted)))
    old = Mixture.of({"alpha": 0.5, "beta": 0.5})
    assert dict(fixed_mixture(two, old, {**ROWS, "gamma": 300})) == pytest.approx(expected)


def test_budgets_beyond_the_caps():
    data = facts()  # 100 sequences a domain
    check_budgets(limited([fixed("one", 50, domains=["alpha", "beta"])], alpha=1, beta=1), data)
    with pytest.raises(
        ConfigError, match=r"stages\.0\.tokens: 6,528; its domains allow 6,400 at their max_epochs \(alpha 3,200"
    ):
        check_budgets(limited([fixed("one", 51, domains=["alpha", "beta"])], alpha=1, beta=1), data)
    check_budgets(limited([fixed("one", 5000, domains=["alpha", "beta"])], alpha=1), data)  # beta has no limit


def test_a_stage_shorter_than_a_step_is_an_error():
    short = {**fixed("two", 1, add=["gamma"]), "tokens": STEP // 2 - 1}
    one = fixed("one", 1, domains=["alpha", "beta"])
    with pytest.raises(ConfigError, match=rf"stages\.1\.tokens: {STEP // 2 - 1}; an optimizer step takes about {STEP}"):
        check_budgets(life(one, short), facts())
    check_budgets(life(one, {**short, "tokens": STEP // 2}), facts())  # rounded to one step


def test_budgets_count_what_earlier_stages_must_have_used():
    one = fixed("one", 50, domains=["alpha", "beta"])
    caps = {"alpha": 1, "beta": 1, "gamma": 1}
    check_budgets(limited([one, fixed("two", 25, add=["gamma"])], **caps), data := facts())
    with pytest.raises(ConfigError, match=r"stages\.1\.tokens: 3,328; .*allow 3,200 .*less at least 6,400 used before"):
        check_budgets(limited([one, fixed("two", 26, add=["gamma"])], **caps), data)
    check_budgets(limited([one, fixed("two", 75, add=["gamma"], replay="repeat")], **caps), data)
    # The first stage may have used nothing but beta.
    check_budgets(limited([one, fixed("two", 25, drop=["beta"])], **caps | {"beta": 2}), data)
