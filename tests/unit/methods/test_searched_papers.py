"""One property of each paper: the reason the method was published."""

import numpy as np
import pytest
from fake_bench import DOMAINS, FakeBench, exponential, own_share, stage_of

from opmix.errors import ConfigError
from opmix.methods.swarm.climb import Climb
from opmix.methods.swarm.data_mixing_laws import DataMixingLaws, fit_steps, halving_shares
from opmix.methods.swarm.merge_mix import MergeMix
from opmix.methods.swarm.merge_to_mix import MergeToMix, all_subsets, second_order, some_subsets, surface
from opmix.methods.swarm.olmix import Olmix, prior_of
from opmix.methods.swarm.regmix import RegMix
from opmix.methods.swarm.runs import repetition_caps, swarm
from opmix.methods.swarm.trees import BoostedTrees, left_out_ranks
from opmix.mixing.design import coordinates_of

OLD = {"web": 0.5, "code": 0.3, "math": 0.2}


def helpful_web(steep=1.5):
    t = own_share(4, steep)
    t[:, 0] -= steep
    return t


# -- RegMix --------------------------------------------------------------------------------------------------------


def test_regmix_swarm_is_sparse_bounded_and_of_small_multiples():
    prior = np.array([0.5, 0.3, 0.15, 0.05])
    rows = swarm(prior, 200, np.random.default_rng(0), strengths=(0.1, 5.0), minimum=2e-4, ceilings=15 * prior)
    assert rows.shape == (200, 4)
    assert len(np.unique(rows, axis=0)) == 200
    assert rows.sum(axis=1) == pytest.approx(1)
    assert (rows == 0).any(axis=1).mean() > 0.5
    assert rows[:, 3].max() <= 0.75 + 2e-4
    positive = rows[rows > 0]
    assert positive.min() > 1e-4


def test_a_swarm_that_cannot_be_drawn_says_so():
    with pytest.raises(ConfigError, match="runs: 5; only 0 different mixtures"):
        swarm(
            np.array([0.5, 0.5]),
            5,
            np.random.default_rng(0),
            strengths=(1, 2),
            minimum=0.1,
            ceilings=np.array([0.1, 0.1]),
        )


@pytest.mark.slow
def test_regmix_trees_rank_interactions_that_no_line_can():
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(4), 300)
    y = (3 - 4 * x[:, 0] * x[:, 1] + 0.01 * rng.normal(size=300))[:, None]
    fit = BoostedTrees(trees=200, learning_rate=0.05).fit(x[:200], y[:200])
    trees = left_out_ranks(y[200:], fit.predict(x[200:]), ("m",))["m"]
    line = np.linalg.lstsq(x[:200], y[:200], rcond=None)[0]
    assert trees > 0.93 > 0.9 > left_out_ranks(y[200:], x[200:] @ line, ("m",))["m"]


@pytest.mark.slow
def test_small_swarms_are_learned_from_where_the_papers_leaves_cannot():
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.random.default_rng(1).dirichlet(np.ones(3), 32)
    y = np.exp(-2 * x[:, :1])
    published = HistGradientBoostingRegressor(max_iter=20, min_samples_leaf=20, early_stopping=False).fit(x, y[:, 0])
    assert np.ptp(published.predict(x)) == 0
    left_out = BoostedTrees(trees=100, learning_rate=0.1).left_out(x, y)
    assert left_out_ranks(y, left_out, ("m",))["m"] > 0.85
    few = BoostedTrees(trees=100, learning_rate=0.1).fit(x[:8], y[:8])  # two runs a leaf
    assert left_out_ranks(y[8:], few.predict(x[8:]), ("m",))["m"] > 0.5


def test_left_out_runs_are_predicted_without_them():
    rng = np.random.default_rng(2)
    x, noise = rng.dirichlet(np.ones(4), 60), rng.normal(size=(60, 1))
    trees = BoostedTrees(trees=100, learning_rate=0.1)
    assert left_out_ranks(noise, trees.fit(x, noise).predict(x), ("m",))["m"] > 0.8
    assert abs(left_out_ranks(noise, trees.left_out(x, noise), ("m",))["m"]) < 0.35


@pytest.mark.slow
def test_regmix_never_asks_for_more_of_a_domain_than_its_usage_allows():
    bench = FakeBench(stage_of(sizes=(100, 100, 100, 5)), exponential(own_share(4)))
    rows = RegMix(trees=20, runs=40, simulated=500, top_k=8, max_usage=4.0).propose(bench).evidence["runs"]
    largest = 4 * 5 / 305
    assert 0 < max(row["mixture"]["news"] for row in rows) <= largest + 2e-4


def test_regmix_trains_its_swarm_from_scratch_on_a_small_model():
    bench = FakeBench(stage_of(), exponential(helpful_web()))
    small = {"hidden_size": 32}
    RegMix(trees=20, runs=24, simulated=500, top_k=8, architecture=small).propose(bench)
    ((label, proxy, count),) = bench.asked
    assert (label, count, proxy.start, proxy.tokens, dict(proxy.architecture)) == (
        "regmix",
        24,
        "scratch",
        40_000,
        small,
    )


# -- Olmix ---------------------------------------------------------------------------------------------------------


def test_olmix_reuse_keeps_old_ratios_exactly_and_searches_less():
    stage = stage_of(old=OLD)
    reused, fresh = (FakeBench(stage, exponential(helpful_web()), noise=1e-3) for _ in range(2))
    proposal = Olmix().propose(reused)
    shares = proposal.mixture
    old = sum(shares[d] for d in OLD)
    assert 0.05 < old < 1
    for domain, share in OLD.items():
        assert shares[domain] / old == pytest.approx(share, abs=1e-12)
    assert set(proposal.evidence["coordinates"]) == {"old", "news"}
    for row in proposal.evidence["runs"]:
        assert row["mixture"]["code"] * 0.5 == pytest.approx(row["mixture"]["web"] * 0.3)
    free = Olmix(reuse=False).propose(fresh).mixture
    assert free["web"] / sum(free[d] for d in OLD) > 0.6  # recomputed, it leaves the old ratios
    assert reused.asked[0][2] < fresh.asked[0][2]


def test_olmix_partial_reuse_searches_an_old_domain_again():
    bench = FakeBench(stage_of(old=OLD, new=["web", "news"]), exponential(helpful_web()))
    shares = Olmix().propose(bench).mixture
    assert shares["code"] / shares["math"] == pytest.approx(1.5)
    assert shares["web"] / shares["code"] > 5 / 3


def test_olmix_prior_counts_old_domains_as_one_of_their_size():
    stage = stage_of(old=OLD, sizes=(4_000_000, 2_000_000, 2_000_000, 2_000_000))
    assert prior_of(stage, coordinates_of(DOMAINS, stage.old)) == pytest.approx([0.8, 0.2])
    again = stage_of(old=OLD, new=["web", "news"], sizes=(4_000_000, 2_000_000, 2_000_000, 2_000_000))
    assert prior_of(again, coordinates_of(DOMAINS, again.old, again.new)) == pytest.approx([0.4, 0.4, 0.2])


def test_olmix_caps_repetition_where_it_can():
    sizes = (100_000, 2_000_000, 2_000_000, 2_000_000)  # of a budget of 1,000,000
    capped = Olmix(max_epochs=4.0).propose(FakeBench(stage_of(sizes=sizes), exponential(helpful_web())))
    assert capped.mixture["web"] == pytest.approx(0.4, abs=1e-4)
    assert capped.evidence["repetition_capped"]
    free = Olmix(max_epochs=None).propose(FakeBench(stage_of(sizes=sizes), exponential(helpful_web())))
    assert free.mixture["web"] > 0.45
    scarce = stage_of(sizes=(1000, 1000, 1000, 1000))
    assert repetition_caps(scarce, 4.0).budget is None
    assert not Olmix().propose(FakeBench(scarce, exponential(helpful_web()))).evidence["repetition_capped"]


def test_olmix_pull_towards_sizes():
    sizes = (1_000_000, 5_000_000, 2_000_000, 2_000_000)
    far = Olmix(kl=100.0).propose(FakeBench(stage_of(sizes=sizes), exponential(helpful_web()))).mixture
    assert far.weights == pytest.approx([0.1, 0.5, 0.2, 0.2], abs=0.01)


# -- Data Mixing Laws ----------------------------------------------------------------------------------------------


def test_data_mixing_laws_recover_planted_parameters():
    k, t, c = 0.7, helpful_web(), 1.8
    bench = FakeBench(stage_of(), lambda p, tokens: c + k * np.exp(p @ t.T))
    law = DataMixingLaws(huber_delta=0.05).propose(bench).evidence["law"]
    for e, domain in enumerate(DOMAINS):
        assert law[domain]["c"] == pytest.approx(c, abs=0.02)
        # on the simplex only `t + log k` can be told
        assert [law[domain]["t"][d] for d in DOMAINS] == pytest.approx(t[e] + np.log(k), abs=0.05)
        assert law[domain]["left_out_r2"] > 0.999


def test_data_mixing_laws_extrapolate_steps_before_they_mix():
    """A domain that is learned fast looks better early than it is at the end; nesting the law of steps sees through that."""

    def law(shares, tokens):
        early = 60 * (tokens**-0.4) * np.exp(shares @ own_share(4, 1.0, [0.2, 0.2, 0.2, 2.5]).T)
        return 1.5 + np.exp(shares @ helpful_web().T) + early

    flat, nested = (FakeBench(stage_of(), law) for _ in range(2))
    short = DataMixingLaws(proxy_share=0.05).propose(flat)
    far = DataMixingLaws(proxy_share=0.05, horizons=(0.25, 0.5)).propose(nested)
    assert [(label, proxy.tokens) for label, proxy, _ in nested.asked] == [
        ("mixing-laws", 50_000),
        ("mixing-laws-1", 12_500),
        ("mixing-laws-2", 25_000),
    ]
    assert far.evidence["step_law"]["beta"] == pytest.approx(0.4, abs=0.01)
    assert nested.objective(far.mixture) < flat.objective(short.mixture) - 1e-3


def test_the_law_of_steps_is_recovered():
    tokens = np.array([1e4, 2e4, 4e4])
    E, B = np.array([[2.0, 3.0]]), np.array([[50.0, 20.0]])
    law = fit_steps(tokens, np.stack([E + B * s**-0.45 for s in tokens]))
    assert law.beta == pytest.approx(0.45, abs=1e-3)
    assert law.predict(1e6) == pytest.approx(E + B * 1e6**-0.45, abs=1e-3)


def test_shares_are_halved_within_what_is_there():
    largest = np.array([1.0, 1.0, 0.5857, 0.2588])
    rows = halving_shares(largest, 20, 1 / 16, np.random.default_rng(0))
    assert len(np.unique(np.round(rows, 9), axis=0)) == 20
    assert rows.sum(axis=1) == pytest.approx(1)
    assert (rows <= largest + 1e-9).all()
    # all but the last domain of each order are a halved largest share
    allowed = {0.0, *(1 / 2**s for s in range(5)), *(0.5625 / 2**s for s in range(4)), 0.25, 0.125, 0.0625}
    on_grid = np.isin(np.round(rows, 9), [round(a, 9) for a in allowed])
    assert (on_grid.sum(axis=1) >= 3).all()


# -- MergeMix ------------------------------------------------------------------------------------------------------


def test_merge_mix_trains_one_expert_a_domain_and_orders_mixtures_despite_interference():
    bench = FakeBench(stage_of(), exponential(helpful_web()), noise=1e-3, interference=0.02)
    proposal = MergeMix().propose(bench)
    ((label, proxy, count),) = bench.asked
    assert (label, proxy.start, proxy.tokens, count) == ("merge-mix", "current", 200_000, 4)
    assert len(proposal.evidence["averages"]) == 16
    grid = np.random.default_rng(5).dirichlet(np.ones(4), 4000)
    lowest = bench.law(grid, 1).mean(axis=1).min()
    uniform = bench.objective(bench.problem.current)
    assert bench.objective(proposal.mixture) - lowest < 0.25 * (uniform - lowest)


# -- Merge to Mix --------------------------------------------------------------------------------------------------


def harmful_news():
    t = own_share(4, 1.2)
    t[:, 3] = 1.5
    return t


@pytest.mark.parametrize("max_subsets", [255, 3])
def test_merge_to_mix_leaves_the_harmful_domain_out(max_subsets):
    bench = FakeBench(stage_of(sizes=(4_000_000, 2_000_000, 2_000_000, 8_000_000)), exponential(harmful_news()))
    proposal = MergeToMix(max_subsets=max_subsets).propose(bench)
    assert proposal.evidence["chosen"] == ["web", "code", "math"]
    assert proposal.evidence["all_subsets"] == (max_subsets == 255)
    assert dict(proposal.mixture) == pytest.approx({"web": 0.5, "code": 0.25, "math": 0.25, "news": 0})
    ((_, proxy, count),) = bench.asked
    assert (proxy.tokens, count) == (250_000, 4)  # all four cost the stage once more


def test_merge_to_mix_evaluates_uniform_averages_of_all_subsets():
    bench = FakeBench(stage_of(), exponential(harmful_news()))
    rows = MergeToMix().propose(bench).evidence["averages"]
    assert len(rows) == 15
    for row in rows:
        assert {d for d, s in row["mixture"].items() if s > 0} == set(row["subset"])
        assert row["mixture"][row["subset"][0]] == pytest.approx(1 / len(row["subset"]))


def test_the_second_order_surface_is_exact_for_quadratic_losses():
    rng = np.random.default_rng(3)
    H, g = rng.normal(size=(6, 6)), rng.normal(size=6)
    H = H @ H.T

    def loss(subset):
        w = np.zeros(6)
        w[list(subset)] = 1 / len(subset)
        return 2 + g @ w + w @ H @ w / 2

    few = some_subsets(6)
    assert len(few) == 6 + 15 + 6 + 1 < len(all_subsets(6)) == 63
    A = second_order(few, np.array([loss(s) for s in few]), 6)
    assert [surface(A, s) for s in all_subsets(6)] == pytest.approx([loss(s) for s in all_subsets(6)])


# -- CLIMB ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_climb_trains_on_better_mixtures_every_time():
    means = []
    for seed in range(4):
        bench = FakeBench(stage_of(seed=seed), exponential(helpful_web()), noise=1e-3)
        proposal = Climb(trees=150, learning_rate=0.07).propose(bench)
        rows = proposal.evidence["runs"]
        assert [sum(r["iteration"] == i for r in rows) for i in (1, 2, 3)] == [16, 8, 4]
        means.append([np.mean([r["mean"] for r in rows if r["iteration"] == i]) for i in (1, 2, 3)])
        assert len({tuple(r["mixture"].values()) for r in rows}) == 28  # nothing is trained twice
    first, second, third = np.mean(means, axis=0)
    assert first > second > third


@pytest.mark.slow
def test_climb_beats_one_round_of_as_many_runs():
    """The paper's claim against RegMix: the same number of proxies does more where it is spent in rounds."""
    gains = []
    for seed in range(4):
        rounds, once = (FakeBench(stage_of(seed=seed), exponential(helpful_web(3.0)), noise=1e-3) for _ in range(2))
        quick = {"trees": 150, "learning_rate": 0.07}
        a = rounds.objective(Climb(**quick).propose(rounds).mixture)
        b = once.objective(Climb(runs=(28,), **quick).propose(once).mixture)
        gains.append(b - a)
    assert np.mean(gains) > 0
