import numpy as np
import pytest

from opmix.mixing.paired import (
    gain_probability,
    loss_difference_error,
    loss_errors,
    objective_error,
    objective_values,
)
from opmix.mixing.problem import SolveSettings

UNEQUAL = np.repeat([8.0, 200.0], [48, 16])
"""Answers of conversations: most are short, most tokens are in the long ones."""


def differences(seed, num=1, tokens=UNEQUAL, sd=0.5):
    """Sums of nats by sequence, (num, S), whose tokens each add independent noise: the loss's standard error is `sd / sqrt(tokens)`."""
    return np.random.default_rng(seed).normal(size=(num, len(tokens))) * sd * np.sqrt(tokens)


def test_sequences_of_unequal_length_count_by_their_tokens():
    true = 0.5 / np.sqrt(UNEQUAL.sum())  # 0.0083
    estimates = loss_errors([differences(0, num=2000)], [UNEQUAL])[:, 0]
    assert np.sqrt(np.mean(estimates**2)) == pytest.approx(true, rel=0.05)
    plain = (differences(0, num=2000) / UNEQUAL).std(axis=1, ddof=1) / np.sqrt(len(UNEQUAL))
    assert np.sqrt(np.mean(plain**2)) > 2 * true  # the mean of rates is another quantity, and twice as uncertain


def test_the_error_is_what_drawing_other_sequences_shows():
    rng = np.random.default_rng(1)
    base = 3.0 * UNEQUAL
    nll = np.stack([base + differences(2)[0], base + differences(3)[0] - 0.2 * UNEQUAL])
    rows = rng.integers(len(UNEQUAL), size=(20_000, len(UNEQUAL)))
    redrawn = (nll[0] - nll[1])[rows].sum(axis=1) / UNEQUAL[rows].sum(axis=1)
    assert loss_difference_error([nll], [UNEQUAL], 0, 1)[0] == pytest.approx(redrawn.std(), rel=0.1)


def test_what_two_models_share_by_sequence_cancels_in_their_difference():
    own = differences(4, sd=20.0)[0]
    nll = np.stack([3 * UNEQUAL + own, 2.9 * UNEQUAL + own, 3 * UNEQUAL + own + differences(5)[0]])
    alone = loss_errors([nll], [UNEQUAL])[:, 0]
    assert loss_difference_error([nll], [UNEQUAL], 0, 1)[0] == pytest.approx(0, abs=1e-12)
    assert loss_difference_error([nll], [UNEQUAL], 0, 0)[0] == 0
    assert loss_difference_error([nll], [UNEQUAL], 0, 2)[0] < alone.min() / 10


def test_with_sequences_of_one_length_it_is_the_standard_error_of_their_mean():
    tokens = np.full(12, 31.0)
    sums = differences(6, num=3, tokens=tokens)
    plain = (sums / 31).std(axis=1, ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(loss_errors([sums, 2 * sums], [tokens, tokens]), np.stack([plain, 2 * plain], axis=1))


def test_sequences_without_a_scored_token_say_nothing():
    sums = np.insert(differences(7), 3, 0.0, axis=1)
    tokens = np.insert(UNEQUAL, 3, 0.0)
    np.testing.assert_allclose(loss_errors([sums], [tokens]), loss_errors([differences(7)], [UNEQUAL]))


@pytest.mark.parametrize("tokens", [[50.0], [50.0, 0.0]])
def test_one_scored_sequence_leaves_the_error_unknown_and_confirms_nothing(tokens):
    nll = np.array([tokens, [2 * t for t in tokens]])
    error = loss_difference_error([nll, differences(8, num=2)], [np.array(tokens), UNEQUAL], 0, 1)
    assert np.isnan(error[0])
    assert np.isfinite(error[1])
    for objective in ("mean", "worst_case"):
        unknown = objective_error(error, SolveSettings(objective=objective))
        assert np.isnan(unknown)
        assert not gain_probability(10.0, unknown) >= 0.5
    only_second = SolveSettings(objective="weighted", omega=np.array([0.0, 2.0]))
    assert objective_error(error, only_second) == pytest.approx(error[1])  # the set that is unknown does not count


def test_objectives_weigh_losses_and_their_errors():
    losses = np.array([[1.0, 3.0], [2.0, 2.5]])
    errors = np.array([0.3, 0.4])
    weighted = SolveSettings(objective="weighted", omega=np.array([1.0, 3.0]))
    worst = SolveSettings(objective="worst_case", reference=np.array([0.5, 2.8]))
    np.testing.assert_allclose(objective_values(losses, SolveSettings()), [2.0, 2.25])
    np.testing.assert_allclose(objective_values(losses, weighted), [2.5, 2.375])
    np.testing.assert_allclose(objective_values(losses[None], worst), [[0.5, 1.5]])
    assert objective_error(errors, SolveSettings()) == pytest.approx(0.25)
    assert objective_error(errors, weighted) == pytest.approx(np.hypot(0.25 * 0.3, 0.75 * 0.4))
    assert objective_error(errors, worst) == 0.4


def test_the_probability_of_a_gain_is_the_normal_one():
    assert gain_probability(0.02, 0.01) == pytest.approx(0.977, abs=1e-3)
    assert gain_probability(0.02, 0.01, least=0.02) == pytest.approx(0.5)
    assert gain_probability(-0.02, 0.01) < 0.03
    assert gain_probability(0.02, 0.0) == 1.0
