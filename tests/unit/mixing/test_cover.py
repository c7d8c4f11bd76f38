import numpy as np
import pytest

from opmix.mixing.cover import Cover, misfit_near, outliers
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.law import fit_law
from opmix.mixing.least_squares import MAX_EXPONENT
from opmix.mixing.mixture import Mixture

UNIFORM = np.full(3, 1 / 3)
NAMES = ("a", "b", "c")


def verdict_of(mixtures, losses, **kwargs):
    fit = fit_law(mixtures, losses, domains=NAMES, metrics=NAMES[: losses.shape[1]])
    prior = Mixture.uniform(NAMES)
    return decide(fit, candidates={"prior": prior}, reference="prior", decision=DecisionSettings(draws=40), **kwargs)


def test_a_swarm_covers_its_middle_and_a_line_or_a_cloud_only_itself():
    rng = np.random.default_rng(0)
    share = np.linspace(0.1, 0.9, 9)[:, None]
    ends = np.array([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8]])
    line = Cover(ends[0] * (1 - share) + ends[1] * share)
    assert Cover(rng.dirichlet(np.ones(3), 20)).outside(UNIFORM) == 0
    assert line.outside(ends.mean(axis=0)) == 0
    assert line.outside(ends[0]) == 0  # a little beyond the last point
    assert line.outside(np.array([0.1, 0.8, 0.1])) > 0.2
    cloud = np.array([0.8, 0.1, 0.1]) + rng.normal(0, 0.004, (15, 1)) * np.array([1.0, -0.5, -0.5])
    assert Cover(cloud).outside(UNIFORM) == pytest.approx(0.45, abs=0.03)


def test_fewer_runs_than_domains_cover_what_lies_between_them():
    runs = np.random.default_rng(0).dirichlet(np.ones(8), 3)
    assert Cover(runs).outside(runs.mean(axis=0)) == 0
    assert Cover(runs).outside(np.full(8, 1 / 8)) > 0.05


@pytest.mark.parametrize("kind", ["line", pytest.param("cloud", marks=pytest.mark.slow)])
def test_a_reference_that_runs_do_not_cover_is_kept_and_said_so(kind):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        if kind == "line":
            share = np.sort(rng.random(12))[:, None]
            mixtures = np.array([0.8, 0.2, 0.0]) * (1 - share) + np.array([0.7, 0.0, 0.3]) * share
        else:
            mixtures = np.abs(np.array([0.7, 0.2, 0.1]) + rng.normal(0, 0.004, (12, 3)))
            mixtures /= mixtures.sum(axis=1, keepdims=True)
        losses = 3 + 0.03 * rng.standard_normal((12, 1))
        verdict = verdict_of(mixtures, losses)
        assert verdict.decision.action == "keep"
        assert "outside what the points cover" in verdict.decision.reason
        assert verdict.decision.gain <= np.ptp(losses)
        assert verdict.alternatives[1].note.startswith("outside")


def test_no_gain_is_larger_than_what_the_runs_differ_by():
    """Four noisy runs of almost one mixture: a gain of 5e21 nats was believed at 94 %."""
    ratios = np.array([[0.5045, 0.4955], [0.5093, 0.4907], [0.5095, 0.4905], [0.5056, 0.4944]])
    losses = np.array([[3.0553], [2.9853], [3.0119], [2.9823]])
    fit = fit_law(ratios, losses, domains=("a", "b"), metrics=("m",))
    verdict = decide(fit, candidates={"prior": Mixture.uniform(("a", "b"))}, reference="prior")
    assert verdict.decision.gain <= np.ptp(losses)
    assert verdict.decision.gain_interval[1] < 1.0
    assert verdict.decision.action == "keep"
    assert np.linalg.norm(fit.law.t, axis=1).max() <= MAX_EXPONENT + 1e-9


def test_one_diverged_run_is_named_and_does_not_set_the_noise():
    rng = np.random.default_rng(3)
    share = rng.dirichlet(np.ones(3), 24)
    losses = np.stack([2 + np.exp(0.5 - 1.2 * share[:, 0])] * 2, axis=1) + rng.normal(0, 1e-3, (24, 2))
    losses[7] = 11.0
    verdict = verdict_of(share, losses, points=[f"run-{i}" for i in range(24)])
    assert verdict.decision.action == "move"
    assert "run-7" in verdict.decision.reason
    assert verdict.decision.noise < 0.02


def test_misfit_is_that_of_the_points_nearby():
    rng = np.random.default_rng(0)
    design = np.vstack([rng.dirichlet(np.full(3, 20.0), 40), np.eye(3)[rng.integers(0, 3, 40)]])
    residuals = np.append(np.full(40, 0.01), np.full(40, 0.05))
    assert misfit_near(UNIFORM, design, residuals) == pytest.approx(0.01)
    assert misfit_near(np.eye(3)[0], design, residuals) > 0.02
    few = misfit_near(UNIFORM, design[35:55], residuals[35:55])  # up to 30 points all count
    assert few == pytest.approx(np.sqrt(np.mean(residuals[35:55] ** 2)))


def test_ordinary_residuals_have_no_outliers():
    rng = np.random.default_rng(0)
    assert not any(len(outliers(rng.standard_normal(30))) for _ in range(200))
    assert outliers(np.append(rng.standard_normal(29), 30.0)).tolist() == [29]
