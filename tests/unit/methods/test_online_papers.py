"""Each mixer against a worked example or a property of its paper."""

from itertools import pairwise

import numpy as np
import pytest
from toy_world import HELPS, NAMES, ToyBench, World, live

from opmix.methods.online.ado import Ado, fit_power_law, speed
from opmix.methods.online.aioli import Aioli, near_one_hot, normalised, solve_matrix
from opmix.methods.online.doge import GradientAlignment, alignment
from opmix.methods.online.doremi import DoReMi, GroupDro
from opmix.methods.online.grape import Grape
from opmix.methods.online.odm import Odm, exploration, importance_weighted
from opmix.methods.online.skill_it import SkillIt
from opmix.methods.online.tikmix import Tikmix
from opmix.mixing.mixture import Mixture
from opmix.protocols.online_mixer import Observation

UNIFORM = Mixture.uniform(NAMES)


def seen(step=10, mixture=UNIFORM, rate=1.0, tokens=None, **signals):
    tokens = mixture.weights * step * 100 if tokens is None else tokens
    arrays = {name: np.array(value, dtype=float) for name, value in signals.items()}
    return Observation(step=step, total_steps=200, mixture=mixture, tokens=tokens, learning_rate=rate, **arrays)


# -- ODM ------------------------------------------------------------------------------------------------------------


def test_importance_weighting_makes_rewards_unbiased():
    policy, losses, generator = np.array([0.7, 0.2, 0.1]), np.array([3.0, 2.0, 4.0]), np.random.default_rng(0)
    draws = generator.multinomial(20, policy, size=4000) / 20
    mean = np.mean([importance_weighted(losses, share, policy, 20) for share in draws], axis=0)
    assert mean == pytest.approx(20 * losses, rel=0.05)
    assert importance_weighted(losses, np.array([1.0, 0.0, 0.0]), policy, 1).tolist() == [3 / 0.7, 0, 0]


def test_exploration_is_the_papers():
    assert exploration(22, 0) == exploration(22, 1) == 1 / 22
    assert exploration(22, 10_000) == pytest.approx((np.log(22) / 220_000) ** 0.5)


def test_the_bandits_rule_by_hand():
    mixer = Odm(scale=10, every=50)
    state, _ = mixer.init(ToyBench(), 200)
    first, segment = mixer.update(state, seen(step=50, train_loss=[3.0, 2.0, 4.0]))
    assert first["rewards"] == pytest.approx([15.0, 10.0, 20.0])
    eps = (np.log(3) / 150) ** 0.5
    chosen = np.exp(np.array([15.0, 10.0, 20.0]) / 3)
    wanted = (1 - 3 * eps) * chosen / chosen.sum() + eps
    assert segment.mixture.weights == pytest.approx(wanted)
    tokens = np.array(first["tokens"]) + 5000 * wanted
    second, _ = mixer.update(first, seen(100, segment.mixture, tokens=tokens, train_loss=[3.0, 2.0, 4.0]))
    assert second["rewards"] == pytest.approx([30.0, 20.0, 40.0])


def test_a_domain_that_was_not_drawn_earns_nothing():
    mixture = Mixture(NAMES, [0.5, 0.5, 0.0])
    state, _ = Odm().init(ToyBench(), 200)
    new, segment = Odm().update(state, seen(10, mixture, train_loss=[3.0, 2.0, np.nan]))
    assert new["rewards"][2] == 0
    assert segment.mixture["math"] > 0


# -- ADO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eps", "beta", "alpha"), [(2.0, 30.0, 0.4), (0.0, 12.0, 0.11), (1.3, 500.0, 0.71)])
def test_a_planted_power_law_is_recovered(eps, beta, alpha):
    n = np.geomspace(1e3, 1e6, 12)
    assert fit_power_law(n, eps + beta * n**-alpha) == pytest.approx((eps, beta, alpha), rel=1e-3, abs=1e-3)


def test_the_fit_survives_noise_and_an_outlier():
    n, generator = np.linspace(1e3, 1e5, 60), np.random.default_rng(1)
    losses = (2 + 30 * n**-0.4) * (1 + 1e-3 * generator.standard_normal(60))
    losses[30] *= 1.3
    law = fit_power_law(n, losses)
    assert law[0] + law[1] * 1e5 ** -law[2] == pytest.approx(2 + 30 * 1e5**-0.4, rel=2e-3)
    assert speed(law, 1e5) == pytest.approx(12 * 1e5**-1.4, rel=0.25)


def test_losses_that_do_not_fall_have_no_speed():
    eps, beta, _ = fit_power_law(np.array([1e3, 2e3, 3e3, 4e3]), np.array([2.0, 2.1, 2.2, 2.3]))
    assert beta == 0
    assert 2.0 <= eps <= 2.3


def test_the_preference_is_the_papers():
    mixer = Ado(points=3, prior="uniform", every=10)
    state, _ = mixer.init(ToyBench(), 200)
    laws = [(2.0, 30.0, 0.4), (2.0, 10.0, 0.3), (2.0, 1.0, 0.2)]
    for step in (10, 20, 30):
        middle = (step - 5) * 100
        losses = [eps + beta * middle**-alpha for eps, beta, alpha in laws]
        state, segment = mixer.update(state, seen(step, train_loss=losses))
    speeds = np.array([speed(law, 3000) for law in laws])
    assert [speed(tuple(law), 3000) for law in state["laws"]] == pytest.approx(speeds, rel=0.02)
    rho = speeds / speeds.sum()  # uniform prior and history
    assert rho.min() > 0.01
    assert segment.mixture.weights == pytest.approx(0.9 / 3 + 0.1 * rho, rel=0.01)
    assert state["mean"] == pytest.approx((1 / 3 + rho) / 2, rel=0.01)


def test_no_domain_falls_below_the_floor():
    segments, state, _ = live(Ado(floor=0.05), ToyBench(World(scales=np.array([3.0, 0.0, 0.0]))), 200)
    assert min(s.mixture.weights.min() for s in segments) >= 0.05 - 1e-12
    assert state["decisions"] >= 10
    assert segments[-1].mixture["web"] > segments[0].mixture["web"]


# -- Skill-It -------------------------------------------------------------------------------------------------------


def test_the_graph_says_who_helps_whom():
    bench = ToyBench()
    graph = SkillIt(share=0.02).learn_graph(bench)
    ((label, proxy, mixtures),) = bench.calls
    assert (label, proxy.tokens, len(mixtures)) == ("skills", 400, 3)
    assert np.array_equal(graph > 0, HELPS > 0)
    base, alone = bench.world.losses(np.zeros(3)), bench.world.losses(np.array([0, 400, 0]))
    assert graph[1] == pytest.approx((base - alone) / base)


def test_pairs_name_only_parents_that_beat_more_of_the_same():
    helps = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])  # code teaches more math than math does
    bench = ToyBench(World(helps=helps))
    graph = SkillIt(graph="pairs").learn_graph(bench)
    assert len(bench.calls[0][2]) == 6
    base, world = bench.world.losses(np.zeros(3)), bench.world
    alone = base[2] - world.losses(np.array([0, 0, 400.0]))[2]
    both = base[2] - world.losses(np.array([0, 200.0, 200.0]))[2]
    wanted = np.eye(3)
    wanted[1, 2] = (both - alone) / alone
    assert wanted[1, 2] > 0
    assert graph == pytest.approx(wanted)


def test_multiplicative_weights_by_hand():
    mixer = SkillIt(eta=0.5, window=2)
    state, segment = mixer.init(ToyBench(), 200)
    graph = np.array(state["graph"])
    start = np.exp(0.5 * graph.sum(axis=1))
    assert segment.mixture.weights == pytest.approx(start / start.sum())
    history = [np.array([3.0, 2.0, 4.0]), np.array([2.5, 1.5, 3.5]), np.array([2.0, 1.0, 3.0])]
    for losses in history:
        state, segment = mixer.update(state, seen(held_out=losses))
    wanted = np.exp(0.5 * graph @ (history[1] + history[2]))
    assert segment.mixture.weights == pytest.approx(wanted / wanted.sum())


# -- Aioli ----------------------------------------------------------------------------------------------------------


class LinearWorld(World):
    """Losses that fall by `A p` a step, whatever came before."""

    matrix = np.array([[0.03, 0.01, 0.0], [0.002, 0.02, 0.004], [0.0, -0.005, 0.01]])

    def losses(self, tokens):
        return 5 - self.matrix @ tokens / self.step_tokens


def test_the_matrix_of_a_linear_world_is_recovered():
    _, state, kept = live(Aioli(every=60, sweeps=2, sweep_steps=2), ToyBench(LinearWorld()), 200)
    assert len(state["drops"]) == 6
    found = solve_matrix(np.array(state["mixtures"]), np.array(state["drops"]))
    assert found == pytest.approx(2 * LinearWorld.matrix)
    assert np.array(state["matrix"]) == pytest.approx(normalised(LinearWorld.matrix))
    lengths = [segment.steps for _, _, segment in kept]
    assert lengths[:8] == [2] * 7 + [60 - 12]
    swept = sorted(np.argmax(segment.mixture.weights) for _, _, segment in kept[1:4])
    assert swept == [0, 1, 2]


def test_exponentiated_gradient_by_hand():
    bench = ToyBench(LinearWorld())
    segments, _, _ = live(Aioli(every=60, sweeps=1, sweep_steps=4, eta=0.5), bench, 130)
    matrix = LinearWorld.matrix + 0.005
    scores = 0.5 * (matrix / matrix.sum()).sum(axis=0)
    once = np.exp(scores) / np.exp(scores).sum()
    long = [s for s in segments if s.steps > 4]
    assert long[0].mixture.weights == pytest.approx(once)
    twice = np.exp(2 * scores) / np.exp(2 * scores).sum()
    assert long[1].mixture.weights == pytest.approx(twice)


def test_sweeps_stay_within_their_share_of_a_round():
    assert near_one_hot(3, 1, 0.625).tolist() == [0.1875, 0.625, 0.1875]
    for total in (100, 1000, 5000):
        state, _ = Aioli().init(ToyBench(), total)
        taken = state["sweeps"] * state["sweep_steps"] * 3
        assert taken <= max(3, 0.2 * state["every"])
    assert (state["every"], state["sweeps"], state["sweep_steps"]) == (250, 4, 4)


# -- GRAPE ----------------------------------------------------------------------------------------------------------


def test_tasks_that_improve_least_weigh_most():
    mixer = Grape()
    state, _ = mixer.init(ToyBench(), 200)
    even = np.zeros((3, 3))
    state, _ = mixer.update(state, seen(100, gradients=even, held_out=[4.0, 4.0, 4.0]))
    assert state["tasks"] == pytest.approx([1 / 3] * 3)
    state, _ = mixer.update(state, seen(200, gradients=even, held_out=[3.0, 3.9, 4.0]))
    wanted = np.exp(-5 * np.array([0.25, 0.025, 0.0]))  # one update of the paper's, lr / mu = 5
    assert state["tasks"] == pytest.approx(wanted / wanted.sum())
    assert state["weights"] == pytest.approx([1 / 3] * 3)


def test_domains_follow_the_weighted_log_gradients():
    mixer = Grape(every=20)
    state, _ = mixer.init(ToyBench(), 200)
    gradients = np.array([[0.4, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, -0.1]])
    state, segment = mixer.update(state, seen(20, rate=0.5, gradients=gradients, held_out=[4.0, 2.0, 1.0]))
    scores = 2 * 0.25 * np.array([0.4 / 4, 0.2 / 2, -0.1]) / 3
    wanted = np.exp(scores) / np.exp(scores).sum()
    assert segment.mixture.weights == pytest.approx(wanted)
    _, segment = mixer.update(state, seen(40, gradients=1e9 * gradients, held_out=[4.0, 2.0, 1.0]))
    assert segment.mixture["web"] / segment.mixture["math"] == pytest.approx(wanted[0] / wanted[2] * np.exp(2))


# -- TiKMiX ---------------------------------------------------------------------------------------------------------


def test_without_influence_between_domains_the_uniform_mixture_is_best():
    weights = Tikmix().solve(np.eye(3), np.full(3, 1 / 3))
    assert weights == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_the_solution_is_as_good_as_a_grid_and_leaves_no_task_behind():
    mixer, influence = Tikmix(), np.array([[1.0, 0.2, 0.1], [0.3, 0.8, 0.5], [0.0, 0.9, 0.7]])
    prior = np.full(3, 1 / 3)
    weights = mixer.solve(influence, prior)
    scaled = influence / influence.max(axis=1, keepdims=True)
    assert (influence @ weights >= influence @ prior - 1e-6).all()
    grid = [np.array([a, b, 100 - a - b]) / 100 for a in range(101) for b in range(101 - a)]
    allowed = [w for w in grid if (influence @ w >= influence @ prior - 1e-12).all()]
    assert len(allowed) > 5
    best = min(mixer.objective(scaled, w) for w in allowed)
    assert mixer.objective(scaled, weights) <= best + 1e-3
    assert weights[1] > 1 / 3


def test_where_every_domain_serves_itself_best_no_task_may_lose_and_nothing_moves():
    prior = np.array([0.5, 0.3, 0.2])
    influence = np.array([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1], [0.1, 0.1, 1.0]])
    assert Tikmix().solve(influence, prior) == pytest.approx(prior, abs=1e-5)


def test_the_objective_by_hand():
    weights, scaled = np.array([0.5, 0.5]), np.array([[1.0, 0.0], [1.0, 1.0]])
    gains = np.array([0.5, 1.0])
    assert Tikmix().objective(scaled, weights) == pytest.approx(gains.std() - gains.sum() - np.log(2))


def test_harmful_domains_do_not_turn_into_good_ones():
    influence = np.array([[-1.0, -0.1], [-1.0, -0.1]])
    weights = Tikmix().solve(influence, np.array([0.5, 0.5]))
    assert weights[1] > weights[0]


# -- DoReMi ---------------------------------------------------------------------------------------------------------


def test_group_dro_raises_the_domain_with_the_highest_excess():
    mixer = GroupDro(eta=1.0, smoothing=1e-3)
    state, _ = mixer.init(ToyBench(), 200)
    state, segment = mixer.update(state, seen(excess=[0.0, 0.5, 0.1]))
    raised = np.exp([0.0, 0.5, 0.1])
    assert segment.mixture.weights == pytest.approx(0.999 * raised / raised.sum() + 0.001 / 3)
    state, segment = mixer.update(state, seen(excess=[0.0, np.nan, 0.1]))  # the last excess of code is kept
    assert state["excess"] == [0.0, 0.5, 0.1]
    assert segment.mixture["code"] > 0.45
    for _ in range(200):
        state, segment = mixer.update(state, seen(excess=[0.0, 2.0, 0.0]))
    assert segment.mixture.weights.min() == pytest.approx(
        1e-3 / 3 / (1 - np.exp(-2)), rel=1e-2
    )  # smoothing holds it up


def test_reference_mixtures():
    for name, wanted in (("uniform", UNIFORM), ("current", UNIFORM), ("size", ToyBench().problem.by_size)):
        bench = ToyBench()
        DoReMi(reference=name).propose(bench)
        assert bench.calls[0][2] == wanted


# -- DoGE -----------------------------------------------------------------------------------------------------------


def test_alignment_by_hand():
    gradients = np.array([[4.0, 2.0, 0.0], [1.0, -3.0, 0.0], [30.0, 0.0, 0.0]])
    norms = np.array([1.0, 2.0, 3.0])
    assert alignment(gradients, norms, 5.0) == pytest.approx([3.0, 0.0, 5.0])
    mixer = GradientAlignment(mu=0.05, rate=5e-4)
    state, _ = mixer.init(ToyBench(), 200)
    _, segment = mixer.update(state, seen(20, rate=0.5, gradients=gradients, gradient_norms=norms))
    wanted = np.exp(20 * 0.5 * 5e-4 / 0.05 * np.array([3.0, 0.0, 5.0]))
    assert segment.mixture.weights == pytest.approx(wanted / wanted.sum())


def test_a_domain_that_serves_all_gains():
    helps = np.array([[1.0, 0.8, 0.8], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    segments, _, _ = live(GradientAlignment(rate=5e-3), ToyBench(World(helps=helps)), 200)
    shares = [s.mixture["web"] for s in segments]
    assert shares[-1] > 0.4
    assert all(b >= a for a, b in pairwise(shares))
