"""OP-Mix's own logic on loss surfaces that the test knows: where it proposes, when it keeps, what the confirming probe decides."""

from dataclasses import replace

import numpy as np
import pytest

from opmix.methods.op_mix import OpMix
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.law import LogLinearLaw
from opmix.mixing.mixture import Mixture
from opmix.mixing.paired import objective_values
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve
from opmix.protocols.mixing_method import DecisionProblem
from opmix.testing import FakeContext, log_linear_surface

DOMAINS = ("web", "code", "math")
EVERY_DOMAIN_HELPS_ITSELF = [[-2.0, 0.0, 0.3], [0.2, -1.0, 0.0], [0.1, 0.3, -0.5]]
NO_DOMAIN_HELPS = [[0.0] * 3] * 3
SKEWED = {"web": 0.8, "code": 0.1, "math": 0.1}


def problem(old=None, domains=DOMAINS):
    return DecisionProblem(
        domains=domains,
        old=None if old is None else Mixture.of(old),
        budget_tokens=10_000,
        available_tokens=dict.fromkeys(domains, 10_000),
    )


def context(t=EVERY_DOMAIN_HELPS_ITSELF, old=None, **given):
    return FakeContext(problem=problem(old), surface=log_linear_surface(t), **given)


def best(t, coordinates=None, settings=None):
    """The optimum of the surface itself."""
    law = LogLinearLaw(DOMAINS, DOMAINS, np.full(3, 2.0), np.array(t), np.zeros(3), 3)
    return solve(law, coordinates=coordinates, settings=settings or SolveSettings(kl=0.0)).mixture


def labels(fake):
    return [call.label for call in fake.calls]


def test_between_old_domains_the_proposal_is_the_surfaces_optimum():
    fake = context(old=SKEWED)
    proposal = OpMix().propose(fake)
    assert proposal.verdict.decision.action == "move"
    assert dict(proposal.mixture) == pytest.approx(dict(best(EVERY_DOMAIN_HELPS_ITSELF)), abs=0.01)


def test_with_a_new_domain_old_proportions_stay_and_its_share_is_the_best():
    old = {"web": 0.75, "code": 0.25}
    fake = context(old=old)
    proposal = OpMix().propose(fake)
    line = Coordinates(("old", "math"), DOMAINS, np.array([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]))
    assert proposal.mixture["web"] == pytest.approx(3 * proposal.mixture["code"])
    assert proposal.mixture["math"] == pytest.approx(best(EVERY_DOMAIN_HELPS_ITSELF, line)["math"], abs=0.01)
    assert labels(fake) == ["proxies"]  # no probe was trained on the mixture in use: nothing to hold the move against


def test_the_objective_is_the_contexts():
    wanted = SolveSettings(objective="weighted", omega=np.array([0.0, 0.0, 1.0]), kl=0.05)
    proposal = OpMix().propose(context(settings=wanted))
    expected = best(EVERY_DOMAIN_HELPS_ITSELF, settings=wanted)
    assert dict(proposal.mixture) == pytest.approx(dict(expected), abs=0.01)
    assert proposal.mixture["math"] > 0.5


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_where_nothing_can_be_gained_the_mixture_in_use_is_kept(seed):
    fake = context(NO_DOMAIN_HELPS, old=SKEWED, noise=0.05, seed=seed, rule=DecisionSettings(draws=40, min_gain=0.02))
    proposal = OpMix().propose(fake)
    assert proposal.verdict.decision.action == "keep"
    assert dict(proposal.mixture) == SKEWED
    assert labels(fake) == ["proxies"]  # keeping needs no confirmation


def test_a_true_move_passes_the_probe_that_is_trained_on_it():
    fake = context(old=SKEWED)
    proposal = OpMix().propose(fake)
    decision, optimum = proposal.verdict.decision, proposal.verdict.optimum.mixture
    losses = fake.surface(np.stack([fake.problem.current.weights, optimum.weights]))
    kept, moved = objective_values(losses, fake.settings)
    assert kept > moved
    assert decision.direct_gain == pytest.approx(kept - moved)
    assert decision.action == "move"
    assert proposal.mixture == optimum
    assert labels(fake) == ["proxies", "verification"]
    probe = fake.calls[-1].design
    assert probe.domains == DOMAINS
    np.testing.assert_allclose(probe.R, optimum.weights[None])


def flattered(**given):
    """Nothing can be gained, but averages of probes look the better the more code they stand for."""
    return context(NO_DOMAIN_HELPS, old=SKEWED, flattery=lambda P: -0.5 * P[:, [1]] * np.ones(3), **given)


def test_a_move_that_only_averages_support_is_stopped():
    # The surface is a little worse away from the mixture in use, which only the probe trained there can tell.
    fake = flattered()
    fake.surface = lambda P: (
        3.0 + 0.1 * np.sum((P - fake.problem.current.weights) ** 2, axis=1, keepdims=True) * np.ones(3)
    )
    unchecked = OpMix(verify=False).propose(fake)
    assert unchecked.verdict.decision.action == "move"
    assert unchecked.verdict.decision.direct_gain is None
    assert labels(fake) == ["proxies"]
    proposal = OpMix().propose(fake)
    assert proposal.verdict.decision.action == "keep"
    assert proposal.verdict.decision.direct_gain < 0
    assert dict(proposal.mixture) == SKEWED
    assert proposal.verdict.mixture == proposal.mixture
    assert proposal.verdict.optimum.mixture == unchecked.mixture


def test_the_error_of_the_direct_gain_is_that_of_paired_sequences():
    answers = (8.0, 8.0, 8.0, 200.0)
    fake = context(old=SKEWED, noise=0.05, tokens=answers)
    proposal = OpMix().propose(fake)
    apart = proposal.verdict.optimum.mixture.weights - fake.problem.current.weights
    tokens = np.resize(answers, fake.sequences)
    errors = []
    for own in fake._sequences(3) @ apart:  # by how much more each sequence gains than the surface says
        deviation = tokens * (own - tokens @ own / tokens.sum())
        count = len(tokens)
        errors.append(np.sqrt(count / (count - 1) * np.sum(deviation**2)) / tokens.sum())
    assert proposal.verdict.decision.direct_error == pytest.approx(np.linalg.norm(errors) / 3)


def test_a_gain_that_one_sequence_shows_confirms_no_move():
    fake = context(old=SKEWED, sequences=1)
    proposal = OpMix().propose(fake)
    decision = proposal.verdict.decision
    assert decision.direct_gain > 0
    assert np.isnan(decision.direct_error)
    assert decision.action == "keep"
    assert "of unknown error" in decision.reason
    assert "nan" not in decision.reason


def test_a_mixture_that_must_be_left_is_not_asked_after():
    fake = context(NO_DOMAIN_HELPS, old=SKEWED, noise=0.01, limits=Constraints(ceilings={"web": 0.5}))
    proposal = OpMix().propose(fake)
    assert proposal.verdict.decision.action == "move"
    assert proposal.mixture["web"] <= 0.5 + 1e-6
    assert labels(fake) == ["proxies"]


@pytest.mark.slow
def test_a_new_domain_is_added_unless_it_harms():
    old = {"web": 0.5, "code": 0.5}
    harmful = [[0.0, 0.0, 2.0], [0.0, 0.0, 2.0], [0.0, 0.0, 1.0]]
    assert OpMix().propose(context(harmful, old=old)).verdict.decision.action == "keep"
    for prove_new, action in ((False, "move"), (True, "keep")):
        rule = DecisionSettings(draws=40, prove_new=prove_new)
        unsure = context(NO_DOMAIN_HELPS, old=old, noise=0.05, settings=SolveSettings(kl=0.05), rule=rule)
        decision = OpMix().propose(unsure).verdict.decision
        assert 0.1 < decision.probability < 0.9
        assert decision.action == action


def test_interference_enters_the_law_where_it_predicts_left_out_points():
    fake = context(old=SKEWED)

    def simulate(design, points, **asked):
        made = FakeContext.simulate(fake, design, points, **asked)
        weights = np.array([p.weights for p in points])
        worse = 0.4 * (weights @ np.diag(made.gram) - np.einsum("mp,pq,mq->m", weights, made.gram, weights))
        nll = tuple(n + t * worse[:, None] for n, t in zip(made.nll, made.tokens, strict=True))
        return replace(made, losses=made.losses + worse[:, None], nll=nll)

    fake.simulate = simulate
    proposal = OpMix().propose(fake)
    np.testing.assert_allclose(proposal.fit.law.gamma, 0.4, rtol=0.05)
    assert proposal.check["corrected"]
    assert dict(proposal.mixture) == pytest.approx(dict(best(EVERY_DOMAIN_HELPS_ITSELF)), abs=0.02)


def test_probes_trained_on_an_alternative_say_what_it_measures():
    proposal = OpMix().propose(context(old=SKEWED))
    by_name = {a.name: a for a in proposal.verdict.alternatives}
    assert set(by_name) == {"proposal", "current", "uniform", "size"}
    measured = by_name["current"].measured
    truth = log_linear_surface(EVERY_DOMAIN_HELPS_ITSELF)(np.array([list(SKEWED.values())]))[0]
    assert list(measured.values()) == pytest.approx(list(truth))
    assert by_name["uniform"].measured is None
