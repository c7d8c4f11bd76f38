"""Fits of many domains: refits that share the fit's matrix, starts that are dropped early, optima where nothing binds."""

import numpy as np
import pytest

from opmix.mixing import law as law_module
from opmix.mixing import least_squares
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.free_optima import free_optima
from opmix.mixing.law import _leave_one_out, _problem, fit_flops, fit_law
from opmix.mixing.least_squares import Parameters
from opmix.mixing.log_linear import LogLinearDraws, LogLinearLaw
from opmix.mixing.mixture import Mixture
from opmix.mixing.numerics import _ranks
from opmix.mixing.posterior import solve_draws
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve

DOMAINS, POINTS = 40, 130


def table(domains=DOMAINS, points=POINTS, metrics=2, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(domains), points)
    exponents = rng.normal(-0.8, 1.0, (metrics, domains))
    return shares, 2 + np.exp(shares @ exponents.T) + rng.normal(0, 3e-3, (points, metrics))


def named(shares, losses):
    return {
        "domains": [f"d{i}" for i in range(shares.shape[1])],
        "metrics": [f"m{i}" for i in range(losses.shape[1])],
    }


@pytest.fixture(scope="module")
def fitted():
    shares, losses = table()
    return fit_law(shares, losses, **named(shares, losses))


def converged(problem, losses, start, **settings):
    """What the general solver comes to, given all the time it wants."""
    return problem.solve(losses, start, max_iterations=300, **settings)


def objective(problem, params, losses, weights=1.0):
    from opmix.mixing.least_squares import huber

    return (weights * huber(losses - problem.predict(params), problem.delta)).sum(axis=1)


def test_left_out_points_are_those_of_whole_refits(fitted):
    problem = fitted.problem
    assert problem.large
    for e in range(2):
        start = fitted.params.take(np.full(POINTS, e))
        losses, weights = np.tile(problem.losses[:, e], (POINTS, 1)), 1.0 - np.eye(POINTS)
        whole, _ = converged(problem, losses, start, weights=weights)
        told = np.diag(problem.predict(whole))
        assert np.abs(fitted.loo[:, e] - told).max() < 0.05 * np.std(fitted.residuals[:, e])


def test_draws_come_to_the_minimum_of_their_own_losses(fitted):
    problem = fitted.problem
    rng = np.random.default_rng(1)
    losses = fitted.fitted[:, 0] + rng.standard_normal((20, POINTS)) * fitted.residuals[:, 0]
    start = fitted.params.take(np.zeros(20, dtype=int))
    near = objective(problem, problem.refit(losses, fitted.params.take(np.array([0]))), losses)
    best = np.minimum(near, converged(problem, losses, start)[1])
    fallen = objective(problem, start, losses) - near
    assert np.all(near - best < 0.02 * fallen)


@pytest.mark.parametrize("constant", [2.0, 0.0])
def test_draws_of_a_flat_table_come_to_their_minimum_too(constant):
    """Losses that mixtures hardly move: constant and exponents say almost the same, and a straight step leaves their valley."""
    rng = np.random.default_rng(0)
    shares, exponents = rng.dirichlet(np.ones(40), 110), rng.normal(0, 0.5, (1, 40))
    losses = constant + np.exp(shares @ exponents.T) + 2e-3 * rng.standard_normal((110, 1))
    fit = fit_law(shares, losses, **named(shares, losses))
    drawn = fit.fitted[:, 0] + rng.standard_normal((6, 110)) * fit.residuals[:, 0]
    found = fit.problem.refit(drawn, fit.params)
    near = objective(fit.problem, found, drawn)
    best = near.copy()
    for b in range(6):
        law = found.take(np.array([b]))
        for _ in range(4):
            law = fit.problem.refit(drawn[[b]], law, tolerance=1e-12)
        best[b] = min(best[b], objective(fit.problem, law, drawn[[b]])[0])
    start = objective(fit.problem, fit.params.take(np.zeros(6, dtype=int)), drawn)
    assert np.all(near - best < 1e-4 * (start - best))
    assert np.all(found.c >= 0)


def test_a_covariate_and_a_constant_at_its_bound_are_refitted_too():
    shares, losses = table(seed=3)
    losses = losses - losses.min() + 0.01  # the constant wants to be below zero
    v = np.linspace(0, 1, POINTS)
    problem = _problem(shares, losses + 0.1 * v[:, None], *named(shares, losses).values(), v, 0.02)
    params = law_module._multi_start(problem)
    found = _leave_one_out(problem, params)
    weights, start = 1.0 - np.eye(POINTS), params.take(np.zeros(POINTS, dtype=int))
    whole, _ = converged(problem, np.tile(problem.losses[:, 0], (POINTS, 1)), start, weights=weights)
    assert np.all(whole.c >= 0)
    spread = np.std(problem.losses[:, 0] - found[:, 0])
    assert np.median(np.abs(found[:, 0] - np.diag(problem.predict(whole)))) < 0.1 * spread


@pytest.mark.slow
def test_dropping_starts_early_loses_nothing(monkeypatch):
    for seed in range(3):
        shares, losses = table(seed=seed)
        problem = _problem(shares, losses, *named(shares, losses).values(), None, 0.02)
        few = law_module._multi_start(problem)
        with monkeypatch.context() as patch:
            patch.setattr(law_module, "_GO_ON", 8)
            every = law_module._multi_start(problem)
        assert np.all(objective(problem, few, losses.T) <= 1.001 * objective(problem, every, losses.T))


def test_no_refit_of_many_exponents_has_a_matrix_of_its_own(monkeypatch, fitted):
    """What made 200 domains take minutes: (points + draws) x metrics matrices of K^2."""
    solved = []
    real = law_module.fit_batch
    monkeypatch.setattr(law_module, "fit_batch", lambda Z, Y, *a, **k: solved.append(len(Y)) or real(Z, Y, *a, **k))
    shares, losses = table()
    fit_law(shares, losses, **named(shares, losses)).draws(num_draws=50)
    assert max(solved) <= len(law_module._START_OFFSETS) * 2


def test_weighted_problems_solved_in_pieces_are_those_solved_at_once(monkeypatch):
    shares, losses = table(domains=3, points=12, metrics=7)
    problem = _problem(shares, losses, *named(shares, losses).values(), None, 0.02)
    start, weights = law_module._multi_start(problem), np.random.default_rng(0).uniform(0.1, 2, (7, 12))
    whole, _ = problem.solve(losses.T, start, weights=weights)
    monkeypatch.setattr(least_squares, "_CHUNK", 3 * 12)
    parts, _ = problem.solve(losses.T, start, weights=weights)
    np.testing.assert_allclose(problem.predict(parts), problem.predict(whole), rtol=1e-9)
    plain, _ = problem.solve(losses.T, start)
    assert np.abs(problem.predict(plain) - problem.predict(whole)).max() > 1e-6


@pytest.mark.slow
def test_many_metrics_are_refitted_together(monkeypatch):
    shares, losses = table(domains=3, points=12, metrics=60)
    calls = []
    real = law_module.fit_batch
    monkeypatch.setattr(law_module, "fit_batch", lambda Z, Y, *a, **k: calls.append(len(Y)) or real(Z, Y, *a, **k))
    fit = fit_law(shares, losses, **named(shares, losses))
    assert calls == [len(law_module._START_OFFSETS) * 60, 12 * 60]
    monkeypatch.setattr(law_module, "_TOGETHER", 1)
    alone = fit_law(shares, losses, **named(shares, losses))
    np.testing.assert_allclose(fit.loo, alone.loo, atol=1e-7)


@pytest.mark.parametrize(("domains", "metrics"), [(7, 3), (4, 9), (30, 1)])
def test_free_optima_are_those_of_the_solver(domains, metrics):
    rng = np.random.default_rng(domains)
    names, sets = tuple(f"d{i}" for i in range(domains)), tuple(f"m{i}" for i in range(metrics))
    t, omega = rng.normal(-0.5, 1.5, (6, metrics, domains)), rng.dirichlet(np.ones(metrics))
    prior = Mixture(names, rng.dirichlet(np.full(domains, 0.5)) * (1 - 1e-3) + 1e-3 / domains)
    settings = SolveSettings(objective="weighted", omega=omega, kl=0.05, prior=prior)
    found = free_optima(t, omega, 0.05, prior.weights, prior.weights)
    for drawn, shares in zip(t, found, strict=True):
        law = LogLinearLaw(sets, names, np.full(metrics, 2.0), drawn, np.zeros(metrics), domains)
        answer = solve(law, settings=settings)
        np.testing.assert_allclose(shares, answer.mixture.weights, atol=1e-5)


def test_where_a_constraint_binds_the_solver_decides():
    names, sets = ("a", "b", "c"), ("m",)
    rng = np.random.default_rng(0)
    t = rng.normal(0, 0.3, (8, 1, 3)) + np.array([-3.0, 0.0, 0.0])
    draws = LogLinearDraws(sets, names, np.full((8, 1), 2.0), t, np.zeros((8, 1)), 3, np.array([100.0]))
    settings, coordinates = SolveSettings(kl=0.05), Coordinates.identity(names)
    free = solve_draws(draws, coordinates, settings, Constraints())
    held = solve_draws(draws, coordinates, settings, Constraints(ceilings={"a": 0.5}))
    assert free.optima[:, 0].min() > 0.5
    np.testing.assert_allclose(held.optima[:, 0], 0.5, atol=1e-6)
    limit = float(draws.law(0).predict(np.array([1, 1, 1]) / 3)[0, 0]) - 0.01
    limited = solve_draws(draws, coordinates, settings, Constraints(max_loss={"m": limit}))
    told = draws.take(limited.kept).predict_each(limited.optima[:, None])[:, 0, 0]
    assert told.max() <= limit + 1e-6


def test_a_decision_on_many_domains_moves_towards_what_helps():
    shares, losses = table(domains=36, points=120, metrics=1)
    fit = fit_law(shares, losses, **named(shares, losses))
    prior = Mixture.uniform(fit.law.domains)
    verdict = decide(fit, candidates={"prior": prior}, reference="prior", decision=DecisionSettings(draws=40))
    best = fit.law.domains[int(fit.law.t[0].argmin())]
    assert verdict.optimum.mixture[best] == max(verdict.optimum.mixture.values())
    low, high = verdict.interval[best]
    assert low <= verdict.optimum.mixture[best] <= high


def test_long_work_is_foretold(monkeypatch, tmp_path):
    from opmix import fit as fitting
    from opmix.progress import Silent

    shares, losses = table(domains=3, points=12, metrics=1)
    header = ["run", *(f"ratio_d{i}" for i in range(3)), "loss_m"]
    rows = [
        f"r{i}," + ",".join(map(repr, map(float, [*p, *y])))
        for i, (p, y) in enumerate(zip(shares, losses, strict=True))
    ]
    (tmp_path / "t.csv").write_text("\n".join([",".join(header), *rows]))
    told = []

    class Listening(Silent):
        def note(self, text):
            told.append(text)

    fitting.fit_runs(tmp_path / "t.csv", progress=Listening())
    assert told == []
    monkeypatch.setattr(fitting, "_LONG", 0.0)
    fitting.fit_runs(tmp_path / "t.csv", progress=Listening())
    assert "1 laws of 3 exponents from 12 runs: about" in told[0]
    sizes = [(100, 10, 1, 200), (100, 10, 2, 200), (200, 10, 2, 200), (200, 50, 2, 200), (500, 200, 2, 200)]
    assert fit_flops(*sizes[0]) * 2 == fit_flops(*sizes[1])
    assert fit_flops(*sizes[2]) < fit_flops(*sizes[3]) < fit_flops(*sizes[4])


def test_ranks_share_ties():
    from scipy.stats import rankdata

    for values in ([3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 5.0, 5.0, 5.0], [2.0]):
        np.testing.assert_array_equal(_ranks(np.array(values)), rankdata(values))


def test_refits_of_one_law_are_a_batch(fitted):
    one = fitted.problem.refit(fitted.losses.T[:1], fitted.params.take(np.array([0])))
    assert isinstance(one, Parameters)
    assert one.z.shape == (1, fitted.rank)
