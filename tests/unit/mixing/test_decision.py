import numpy as np
import pytest

from opmix.mixing.confirm import confirm
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.posterior import resampling_noise, solve_draws
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve

DOMAINS = ("a", "b", "c")


def swarm(seed, noise, slope=0.3, num_points=20):
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet(np.ones(3), num_points)
    t = slope * np.array([[-2.0, 0.5, 0.5], [0.2, -0.5, 0.8], [0.1, 0.5, -0.4]])
    losses = 2.0 + np.exp(mixtures @ t.T) + noise * rng.standard_normal((num_points, 3))
    return fit_law(mixtures, losses, domains=DOMAINS, metrics=DOMAINS), t


def judge(fit, **kwargs):
    uniform = Mixture.uniform(DOMAINS)
    return decide(fit, candidates={"current": uniform, "uniform": uniform}, reference="current", **kwargs)


def test_a_gain_inside_the_noise_keeps_the_current_mixture():
    verdict = judge(swarm(0, noise=0.05, slope=0.02)[0])
    assert verdict.decision.action == "keep"
    assert verdict.mixture == Mixture.uniform(DOMAINS)
    assert verdict.decision.reason.startswith("keep the current mixture")


def test_a_clear_gain_moves():
    verdict = judge(swarm(0, noise=0.001, slope=1.0)[0], settings=SolveSettings(kl=0.01))
    assert verdict.decision.action == "move"
    assert verdict.mixture == verdict.optimum.mixture
    assert verdict.decision.probability > 0.99


def test_a_move_for_less_than_is_asked_between_domains_says_that_it_is_not_sure():
    fit, _ = swarm(0, noise=0.01, slope=0.1)
    sure, likely = (judge(fit, structural=0.05, decision=DecisionSettings(confidence=c)).decision for c in (None, 0.5))
    assert 0.5 < sure.probability == likely.probability < 0.9
    assert (sure.action, likely.action) == ("keep", "move")
    assert likely.reason.endswith("likelier than not, and not sure")
    assert (sure.confidence, likely.confidence) == (0.9, 0.5)


def test_structural_error_can_stop_a_move():
    fit, _ = swarm(0, noise=0.001, slope=1.0)
    assert judge(fit, structural=5.0).decision.action == "keep"


@pytest.mark.slow
def test_false_moves_are_rare_where_nothing_can_be_gained():
    moves = [
        judge(swarm(seed, noise=0.01, slope=0.0)[0], decision=DecisionSettings(draws=60)).decision.action
        for seed in range(20)
    ]
    assert moves.count("move") <= 2


def test_an_infeasible_current_mixture_is_not_kept():
    verdict = judge(swarm(0, noise=0.05, slope=0.02)[0], constraints=Constraints(ceilings={"a": 0.1}))
    assert verdict.decision.action == "move"
    assert verdict.mixture["a"] <= 0.1 + 1e-6


def test_alternatives_are_scored_and_the_same_seed_gives_the_same_answer():
    fit, _ = swarm(1, noise=0.01)
    first, second = judge(fit), judge(fit)
    assert [a.name for a in first.alternatives] == ["proposal", "current", "uniform"]
    assert first.interval == second.interval
    assert first.alternatives[1].gain == 0.0


@pytest.mark.slow
def test_intervals_cover_the_true_optimum():
    """90 % intervals over repeated noisy swarms; the law is right, so they must cover about as often as they say."""
    hits, trials = 0, 0
    for seed in range(30):
        fit, t = swarm(seed, noise=0.01)
        truth = type(fit.law)(DOMAINS, DOMAINS, np.full(3, 2.0), t, np.zeros(3), 3)
        best = solve(truth).mixture
        draws = fit.draws(num_draws=100, seed=seed)
        interval = solve_draws(draws, Coordinates.identity(DOMAINS), SolveSettings(), Constraints()).interval(0.9)
        for d in DOMAINS:
            trials += 1
            hits += interval[d][0] <= best[d] <= interval[d][1]
    assert 0.75 <= hits / trials <= 1.0


def test_resampling_noise_is_shared_by_paired_points():
    rng = np.random.default_rng(0)
    common = rng.normal(100, 20, (1, 50))
    nll = [np.repeat(common, 4, axis=0) + np.arange(4)[:, None]]
    noise = resampling_noise(nll, [np.full(50, 10.0)], num_draws=200, seed=0)
    assert noise.shape == (200, 4, 1)
    assert np.abs(noise - noise[:, :1]).max() < 1e-9
    assert noise.std() == pytest.approx(20 / 10 / np.sqrt(50), rel=0.3)


def test_absurd_extrapolation_is_cut_at_the_ceiling():
    fit, _ = swarm(0, noise=0.01)
    draws = fit.draws(num_draws=5)
    wild = type(draws)(draws.metrics, draws.domains, draws.c, draws.t * 1e4, draws.gamma, draws.rank, draws.ceiling)
    assert np.all(wild.predict(np.eye(3)) <= 10 * fit.problem.losses.max(axis=0))
    assert np.array_equal(draws.law(2).predict(np.eye(3)), draws.predict(np.eye(3))[2])


def test_a_direct_measurement_has_the_last_word():
    verdict = judge(swarm(0, noise=0.001, slope=1.0)[0], settings=SolveSettings(kl=0.01))
    stands, stopped = confirm(verdict, 0.05, 0.01), confirm(verdict, 0.002, 0.002)
    assert stands.decision.action == "move"
    assert stands.mixture == verdict.mixture
    assert stopped.decision.action == "keep"
    assert stopped.mixture == Mixture.uniform(DOMAINS)
    assert stopped.decision.direct_gain == 0.002
    assert stopped.optimum is verdict.optimum
    assert stands.decision.direct_gain == 0.05
    level = 1.5 * 0.01  # 93 % for one, 87 % for the better of two
    assert confirm(verdict, level, 0.01).decision.action == "move"
    assert confirm(verdict, level, 0.01, tries=2).decision.action == "keep"
    assert confirm(verdict, level, 0.01, tries=0).decision.direct_gain is None
    unknown = confirm(verdict, 0.05, float("nan"), tries=2)
    assert unknown.decision.action == "keep"


@pytest.mark.slow
def test_a_newcomer_is_left_out_only_where_it_surely_harms():
    """Three laws on the same two domains: the new one surely helps, may help, surely harms."""
    said = {}
    for name, slope, noise in (("helps", -1.0, 1e-4), ("unsure", -0.02, 0.05), ("harms", 0.6, 1e-4)):
        rng = np.random.default_rng(4)
        P = np.stack([np.linspace(0.9, 0.1, 9), np.linspace(0.1, 0.9, 9)], axis=1)
        losses = 3 + np.exp(slope * P[:, [1]]) + noise * rng.standard_normal((9, 1))
        fit = fit_law(P, losses, domains=("old", "new"), metrics=("all",))
        mixtures = {"current": Mixture.of({"old": 1.0, "new": 0.0})}
        for newcomers, strict in ((True, False), (True, True), (False, False)):
            made = decide(
                fit,
                candidates=mixtures,
                reference="current",
                newcomers=newcomers,
                settings=SolveSettings(kl=0.05),
                decision=DecisionSettings(prove_new=strict),
            )
            said[name, newcomers, strict] = made.decision.action
    assert {said["helps", n, s] for n, s in ((True, False), (True, True), (False, False))} == {"move"}
    assert said["unsure", True, False] == "move"
    assert said["unsure", True, True] == said["unsure", False, False] == "keep"
    assert {said["harms", n, s] for n, s in ((True, False), (True, True), (False, False))} == {"keep"}


def test_that_a_gain_is_not_likelier_than_not_is_no_proof_that_a_newcomer_harms():
    P = np.stack([np.linspace(0.9, 0.1, 9), np.linspace(0.1, 0.9, 9)], axis=1)
    losses = 3 + np.exp(0.02 * P[:, [1]]) + 0.05 * np.random.default_rng(4).standard_normal((9, 1))
    fit = fit_law(P, losses, domains=("old", "new"), metrics=("all",))
    made = decide(
        fit,
        candidates={"current": Mixture.of({"old": 1.0, "new": 0.0})},
        reference="current",
        newcomers=True,
        settings=SolveSettings(kl=0.05),
        decision=DecisionSettings(confidence=0.5),
        structural=0.2,
    )
    assert 0.1 < made.decision.probability < 0.5
    assert made.decision.action == "move"
