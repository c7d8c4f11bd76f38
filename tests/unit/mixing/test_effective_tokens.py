import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from opmix.mixing.constraints import Constraints, Group
from opmix.mixing.effective_tokens import REPETITION_DECAY, EffectiveTokensLaw, Tokens
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import Coordinates, Problem, SolveSettings
from opmix.mixing.solver import solve

OBJECTIVES = ("mean", "weighted", "worst_case", "perplexity")
seeds = st.integers(0, 10_000)


def random_law(seed, *, repeat=True):
    rng = np.random.default_rng(seed)
    E, D = int(rng.integers(1, 6)), int(rng.integers(2, 7))
    unique = np.where(rng.random(D) < 0.4, rng.uniform(0.05, 3, D), np.inf) if repeat else np.full(D, np.inf)
    return EffectiveTokensLaw(
        tuple(f"m{e}" for e in range(E)),
        tuple(f"d{d}" for d in range(D)),
        rng.uniform(2, 5, E),
        np.exp(rng.normal(-2.5, 0.6, E)),
        np.exp(rng.normal(0, 2, (E, D))),
        float(rng.choice([0.4, 0.6, 0.8, 1.0])),
        Tokens(float(rng.choice([1.0, 5.0])), unique),
    )


def random_settings(seed, law):
    rng = np.random.default_rng(seed + 1)
    return SolveSettings(
        objective=str(rng.choice(OBJECTIVES)),
        omega=rng.uniform(0.1, 1, len(law.metrics)),
        kl=float(rng.choice([0.0, 0.01])),
    )


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_losses_are_convex_in_the_mixture(seed):
    law = random_law(seed)
    P = np.random.default_rng(seed).dirichlet(np.full(len(law.domains), 0.3), 2)
    between = law.predict((P[:1] + P[1:]) / 2)[0]
    assert np.all(between <= law.predict(P).mean(axis=0) + 1e-12)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_gradients_are_the_losses_own(seed):
    law = random_law(seed)
    p = np.random.default_rng(seed).dirichlet(np.full(len(law.domains), 3.0))
    step = 1e-6
    numeric = [(law.predict(p + step * row)[0] - law.predict(p - step * row)[0]) / (2 * step) for row in np.eye(len(p))]
    np.testing.assert_allclose(law.gradient(p), np.array(numeric).T, rtol=1e-4, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_no_other_mixture_is_better_than_the_optimum(seed):
    law = random_law(seed)
    chosen = random_settings(seed, law)
    answer = solve(law, settings=chosen)
    problem = Problem.build(law, None, chosen, Constraints())

    def value(z):
        p = np.exp(z - z.max())
        return problem.value(p / p.sum())

    starts = (np.zeros(len(law.domains)), np.log(np.maximum(answer.mixture.weights, 1e-9)))
    best = min(minimize(value, s, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}).fun for s in starts)
    assert answer.objective <= best + 1e-6 * max(1.0, abs(best))
    assert answer.gap >= answer.objective - best - 1e-9


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_constraints_hold_and_the_certificate_does_too(seed):
    law = random_law(seed, repeat=False)
    limit = float(law.predict(np.full((1, len(law.domains)), 1 / len(law.domains)))[0, 0])
    rules = Constraints(
        floors={"d0": 0.1}, groups={"g": Group(domains=("d0",), ceiling=0.9)}, max_loss={"m0": limit + 1e-3}
    )
    answer = solve(law, settings=random_settings(seed, law), constraints=rules)
    assert answer.max_violation <= 1e-8
    assert answer.gap <= 1e-5 * max(1.0, abs(answer.objective))


def test_old_data_keep_their_proportions():
    law = random_law(3)
    size = len(law.domains)
    old = np.append(np.full(size - 1, 1 / (size - 1)), 0.0)
    coordinates = Coordinates(("old", law.domains[-1]), law.domains, np.stack([old, np.eye(size)[-1]]))
    weights = solve(law, coordinates=coordinates, settings=SolveSettings(kl=0)).mixture.weights
    np.testing.assert_allclose(weights[:-1], weights[0])


def test_agrees_with_cvxpy_under_limits():
    cp = pytest.importorskip("cvxpy")
    law = EffectiveTokensLaw(
        ("m0", "m1"),
        ("a", "b", "c"),
        np.array([3.0, 4.0]),
        np.array([0.1, 0.2]),
        np.array([[5.0, 0.1, 0.0], [0.1, 2.0, 1.0]]),
        0.6,
        Tokens(2.0, np.full(3, np.inf)),
    )
    limit = float(law.predict(np.array([[0.6, 0.2, 0.2]]))[0, 0])
    answer = solve(law, settings=SolveSettings(kl=0), constraints=Constraints(max_loss={"m0": limit}))
    p = cp.Variable(3, nonneg=True)
    losses = [law.base[e] - law.b[e] * cp.log(1 + law.worth[e] @ cp.power(2.0 * p, 0.6)) for e in range(2)]
    problem = cp.Problem(cp.Minimize((losses[0] + losses[1]) / 2), [cp.sum(p) == 1, losses[0] <= limit])
    problem.solve(solver="CLARABEL")
    assert answer.objective + law.base.mean() == pytest.approx(problem.value, rel=1e-6)


def test_repeated_tokens_are_worth_less_and_less():
    tokens = Tokens(10.0, np.array([1.0, np.inf]), decay=15.4)
    shares = np.linspace(0, 1, 201)
    x = tokens.effective(np.stack([shares, shares], axis=1))
    np.testing.assert_allclose(x[:, 1], 10 * shares)
    np.testing.assert_allclose(x[:21, 0], 10 * shares[:21])  # nothing repeated yet
    assert x[-1, 0] == pytest.approx(1 + 15.4 * (1 - np.exp(-9 / 15.4)))
    assert np.all(np.diff(x[:, 0], 2) <= 1e-12)
    slope = tokens.slope(np.full((1, 2), 0.5))[0]
    assert slope == pytest.approx([10 * np.exp(-4 / 15.4), 10.0])


def test_repeated_tokens_wear_out_as_they_were_measured_to():
    """Muennighoff et al., arXiv 2305.16264, appendix A: R* of data is 15.387756."""
    assert pytest.approx(15.387756, abs=0.05) == REPETITION_DECAY


def test_a_domain_that_runs_out_gets_less():
    common = (("m",), ("a", "b"), np.array([3.0]), np.array([0.2]), np.array([[2.0, 1.0]]), 0.8)
    free = solve(EffectiveTokensLaw(*common, Tokens(50.0, np.full(2, np.inf))), settings=SolveSettings(kl=0))
    scarce = solve(EffectiveTokensLaw(*common, Tokens(50.0, np.array([1.0, np.inf]))), settings=SolveSettings(kl=0))
    assert scarce.mixture["a"] < free.mixture["a"] - 0.1


def test_log_mean_perplexity_has_the_optimum_of_the_mean_perplexity():
    law = random_law(11)
    answer = solve(law, settings=SolveSettings(objective="perplexity", kl=0)).mixture.weights
    around = 0.999 * answer + 0.001 * np.eye(len(answer))
    means = np.exp(law.predict(np.vstack([answer, around, Mixture.uniform(law.domains).weights]))).mean(axis=1)
    assert means[0] <= means.min() + 1e-6
