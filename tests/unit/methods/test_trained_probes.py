"""A law in effective tokens on trained probes alone: where it proposes, and what trained candidates decide."""

from dataclasses import replace

import numpy as np
import pytest

from opmix.methods import candidates
from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
from opmix.mixing.effective_tokens_fit import Discrepancy
from opmix.mixing.mixture import Mixture
from opmix.mixing.solver import SolveSettings, solve
from opmix.protocols.mixing_method import DecisionProblem
from opmix.testing import FakeContext, log_linear_surface

DOMAINS = ("web", "code", "math")
STAGE = 32_000
WORTH = np.array([[3.0, 0.1, 0.0], [0.2, 12.0, 0.1], [0.0, 0.1, 6.0]])
GAIN = np.array([0.1, 0.3, 0.15])


def truth(tokens=STAGE):
    """The law that trained models obey, asked at so many tokens; one unit is a whole probe."""
    return EffectiveTokensLaw(
        DOMAINS, DOMAINS, np.array([3.0, 2.5, 2.8]), GAIN, WORTH, 0.7, Tokens(tokens / 6400, np.full(3, np.inf))
    )


def course(tokens):
    have = (tokens / 6400) ** 0.7 @ WORTH.T
    return np.array([3.0, 2.5, 2.8]) - GAIN * np.log1p(have)


def context(old, course=course, **given):
    problem = DecisionProblem(
        domains=DOMAINS,
        old=Mixture.of(old),
        budget_tokens=STAGE,
        available_tokens=dict.fromkeys(DOMAINS, 10 * STAGE),
    )
    flat = log_linear_surface([[0.0] * 3] * 3)
    return FakeContext(stage=problem, surface=flat, course=course, rule=DecisionSettings(draws=40), **given)


METHOD = TrainedProbes(steps=64)


def test_the_proposal_is_near_the_optimum_at_the_stages_own_length():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    proposal = METHOD.propose(fake)
    best = solve(truth(), settings=SolveSettings(kl=0.0)).mixture
    values = [float(truth().predict(m.weights).mean()) for m in (proposal.mixture, best, fake.stage.current)]
    assert proposal.verdict.decision.action == "move"
    assert values[0] - values[1] < 0.1 * (values[2] - values[1])


def test_probes_are_looked_at_on_their_way_and_nothing_is_interpolated():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    proposal = METHOD.propose(fake)
    assert [call.label for call in fake.calls] == ["probes-at-32", "proxies", "tokens-second-opinion", "verification"]
    first, last = (fake.calls[i].design.R for i in (0, -1))
    assert np.array_equal(last[0], first[0])  # the same probe, to the last bit: it is not trained again
    assert all(np.count_nonzero(point.weights) == 1 for call in fake.calls for point in call.points)
    table = proposal.table
    assert len(table.points) == 2 * 4
    assert table.kinds.count("look") == 4


def test_the_mixture_in_use_is_kept_where_it_is_the_best():
    best = solve(truth(6400), settings=SolveSettings(kl=0.0)).mixture
    fake = context(dict(best))
    proposal = METHOD.propose(fake)
    assert proposal.verdict.decision.action == "keep"
    assert dict(proposal.mixture) == pytest.approx(dict(best))


def test_of_two_trained_candidates_the_better_one_is_taken():
    def saturating(tokens):
        """Beyond half of a probe's tokens a domain harms every set, which no probe of the law's shape foretells."""
        share = tokens / 6400
        return course(tokens) + 2.0 * np.maximum(share.max(axis=1, keepdims=True) - 0.95, 0.0)

    fake = context({"web": 0.8, "code": 0.1, "math": 0.1}, saturating)
    proposal = METHOD.propose(fake)
    candidates = {c["name"]: c["measured_gain"] for c in proposal.evidence["candidates"]}
    chosen = max(candidates, key=candidates.get)
    wanted = next(c["mixture"] for c in proposal.evidence["candidates"] if c["name"] == chosen)
    assert proposal.verdict.decision.direct_gain == pytest.approx(candidates[chosen])
    assert dict(proposal.mixture) == pytest.approx(wanted)


def test_without_confirmation_no_candidate_is_trained():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    TrainedProbes(steps=64, verify=False).propose(fake)
    assert "verification" not in [call.label for call in fake.calls]


def test_short_probes_have_fewer_looks():
    assert [f.steps for f in TrainedProbes(steps=200).looks] == [100, None]
    assert [f.steps for f in TrainedProbes(steps=9).looks] == [4, None]
    assert [f.steps for f in TrainedProbes(steps=4).looks] == [None]


def test_candidates_are_judged_on_sequences_that_the_law_was_not_fitted_to():
    """The fitted sequences alone like what the law proposes, by a nat: nothing of that is in the measured gain."""

    class Flattering(FakeContext):
        def simulate(self, design, points, **asked):
            found = super().simulate(design, points, **asked)
            if asked["label"] != "verification":
                return found
            kept = self.calls[-2].fidelity.stride(self.sequences)
            first = np.arange(len(points))[:, None] == 0
            liked = [np.where(first, 0.0, np.arange(self.sequences) % kept == 0) for _ in found.nll]
            return replace(found, nll=tuple(n - 100.0 * a for n, a in zip(found.nll, liked, strict=True)))

    plain = context({"web": 0.8, "code": 0.1, "math": 0.1})
    fake = Flattering(stage=plain.stage, surface=plain.surface, course=course, rule=plain.rule)
    gains = [METHOD.propose(c).verdict.decision.direct_gain for c in (plain, fake)]
    assert gains[1] == pytest.approx(gains[0])


def test_a_candidate_that_breaks_a_loss_limit_is_out():
    old = {"web": 0.8, "code": 0.1, "math": 0.1}
    free = METHOD.propose(context(old))
    now = float(course(np.zeros((1, 3)))[0, 0])
    measured = {c["name"]: c["mixture"] for c in free.evidence["candidates"]}
    lost = {name: float(course(6400 * np.array([list(p.values())]))[0, 0]) for name, p in measured.items()}
    assert lost["halfway"] < lost["proposal"]
    between = (lost["halfway"] + lost["proposal"]) / 2
    limits = Constraints(max_loss={"web": between}, current_loss={"web": now})
    bound = METHOD.propose(context(old, limits=limits))
    proposed, halfway = bound.evidence["candidates"]
    assert (proposed["breaks"], halfway["breaks"]) == (["web"], [])
    assert dict(bound.mixture) == pytest.approx(halfway["mixture"])


def test_a_measured_rise_counts_for_what_it_is_worth_in_the_stage():
    """Between the probes lies a harm to web that no law foretells: a twentieth of a nat there, four times that in the stage."""

    def harmful(tokens):
        losses, shares = course(tokens), tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1.0)
        losses[:, 0] += 0.05 * ((shares.max(axis=1) > 0.3) & (shares.max(axis=1) < 0.75))
        return losses

    limit = Constraints(max_loss={"web": 3.0}, current_loss={"web": 3.0})
    told = {}
    for factor in (1.0, 4.0):
        method = TrainedProbes(steps=64, discrepancy=Discrepancy(factor, 0.1))
        found = method.propose(context({"web": 0.8, "code": 0.1, "math": 0.1}, harmful, limits=limit))
        told[factor] = [c["breaks"] for c in found.evidence["candidates"]]
    assert told[1.0] == [[], []]
    assert ["web"] in told[4.0]


def test_the_stage_keeps_a_limit_that_the_law_foretells():
    """The truth at the stage's own length, for a search that wants code alone."""
    alone = SolveSettings(objective="weighted", omega=np.array([0.0, 1.0, 0.0]), kl=0.0)
    old = dict.fromkeys(DOMAINS, 1 / 3)
    lowest = float(truth().predict(np.full(3, 1 / 3))[0, 0])
    limit = Constraints(max_loss={"web": lowest + 0.1}, current_loss={"web": 3.0})
    free, bound = (METHOD.propose(context(old, settings=alone, **told)) for told in ({}, {"limits": limit}))
    lost = [float(truth().predict(p.verdict.optimum.mixture.weights)[0, 0]) for p in (free, bound)]
    assert lost[0] > lowest + 0.1
    assert lost[1] <= lowest + 0.1
    (told,) = bound.verdict.limits(bound.fit.law)
    assert told.kept


@pytest.mark.slow
@pytest.mark.parametrize("noise", [{"noise": 0.1}, {"order": 0.01}])
def test_searches_seldom_move_where_nothing_can_be_gained(noise):
    def flat(tokens):
        return np.repeat(3.0 - 0.2 * np.log1p(tokens.sum(axis=1, keepdims=True) / 2000), 3, axis=1)

    uniform = dict.fromkeys(DOMAINS, 1 / 3)
    actions = [METHOD.propose(context(uniform, flat, seed=s, **noise)).verdict.decision.action for s in range(60)]
    assert actions.count("move") <= 60 * 0.1 + 2 * np.sqrt(60 * 0.1 * 0.9)


def unsure(count=30):
    """Contexts in which probes' own noise is as large as what there is to gain."""
    return [context({"web": 0.5, "code": 0.2, "math": 0.3}, order=0.02, seed=seed) for seed in range(count)]


@pytest.mark.slow
def test_a_candidate_that_does_not_convince_is_trained_once_more():
    again = []
    for fake in unsure():
        proposal = METHOD.propose(fake)
        calls = {call.label: call for call in fake.calls}
        if (second := calls.get("verification-again")) is None:
            continue
        again.append(proposal)
        assert second.fidelity.order == 1
        first = calls["verification"]
        assert np.array_equal(second.design.R[0], first.design.R[0])  # the mixture in use, and the better candidate
        assert any(np.array_equal(second.design.R[1], row) for row in first.design.R[1:])
        decision = proposal.verdict.decision
        assert "two probes trained on each" in decision.reason
        tried = [c for c in proposal.evidence["candidates"] if "measured_again" in c]
        assert [c["measured_again"] for c in tried] == [decision.direct_gain]
        assert decision.direct_gain != pytest.approx(tried[0]["measured_gain"])
        kept = np.allclose(proposal.mixture.weights, fake.stage.current.weights)
        assert kept == (decision.action == "keep")
    assert {p.verdict.decision.action for p in again} == {"move", "keep"}


@pytest.mark.slow
def test_a_second_look_finds_more_of_what_there_is_to_gain(monkeypatch):
    def moves():
        return sum(METHOD.propose(fake).verdict.decision.action == "move" for fake in unsure())

    twice = moves()
    monkeypatch.setattr(candidates, "WORTH_A_SECOND_LOOK", 1.0)
    assert twice > moves()


def test_what_convinces_or_is_hopeless_is_not_trained_again():
    for old in (
        {"web": 0.8, "code": 0.1, "math": 0.1},
        dict(solve(truth(6400), settings=SolveSettings(kl=0.0)).mixture),
    ):
        fake = context(old)
        METHOD.propose(fake)
        assert "verification-again" not in [call.label for call in fake.calls]
