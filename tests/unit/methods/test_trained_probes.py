"""A law in effective tokens on trained probes alone: where it proposes, and what trained candidates decide."""

from dataclasses import replace

import numpy as np
import pytest

from opmix.methods.candidates import Candidate, chosen
from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.confirm import surely
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
from opmix.mixing.effective_tokens_fit import Discrepancy
from opmix.mixing.estimates import Estimate
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.solver import solve
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
    return FakeContext(problem=problem, surface=flat, course=course, rule=DecisionSettings(draws=40), **given)


METHOD = TrainedProbes(steps=64)


def test_the_proposal_is_near_the_optimum_at_the_stages_own_length():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    proposal = METHOD.propose(fake)
    best = solve(truth(), settings=SolveSettings(kl=0.0)).mixture
    values = [float(truth().predict(m.weights).mean()) for m in (proposal.mixture, best, fake.problem.current)]
    assert proposal.verdict.decision.action == "move"
    assert values[0] - values[1] < 0.1 * (values[2] - values[1])


def test_probes_are_looked_at_on_their_way_and_nothing_is_interpolated():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    proposal = METHOD.propose(fake)
    seen, compared = ["probes-at-32", "proxies", "tokens-second-opinion"], ["verification-at-32", "verification"]
    assert [call.label for call in fake.calls] == [*seen, *compared]
    first, last = (fake.calls[i].design.R for i in (0, -1))
    assert np.array_equal(last[0], first[0])  # the mixture in use, in another order
    assert [call.fidelity.order for call in fake.calls] == [0, 0, 0, 1, 1]
    orders = {(probe, call.fidelity.order) for call in fake.calls for probe in call.design.probes}
    assert len(orders) == len(dict(orders))  # a run folder knows a probe by its name
    assert all(np.count_nonzero(point.weights) == 1 for call in fake.calls for point in call.points)
    table = proposal.table
    assert len(table.points) == 2 * 4
    assert table.kinds.count("look") == 4


def test_the_mixture_in_use_is_kept_where_it_is_the_best():
    best = solve(truth(), settings=SolveSettings(kl=0.0)).mixture
    proposal = METHOD.propose(context(dict(best), order=0.003))
    assert proposal.verdict.decision.action == "keep"
    assert dict(proposal.mixture) == pytest.approx(dict(best))


def test_of_two_trained_candidates_the_better_one_is_taken():
    def saturating(tokens):
        """Beyond half of a probe's tokens a domain harms every set, which no probe of the law's shape foretells."""
        share = tokens / 6400
        return course(tokens) + 2.0 * np.maximum(share.max(axis=1, keepdims=True) - 0.95, 0.0)

    fake = context({"web": 0.8, "code": 0.1, "math": 0.1}, saturating)
    proposal = METHOD.propose(fake)
    candidates = {c["name"]: c["gain"] for c in proposal.evidence["candidates"]}
    chosen = max(candidates, key=candidates.get)
    wanted, measured = next(
        (c["mixture"], c["measured_gain"]) for c in proposal.evidence["candidates"] if c["name"] == chosen
    )
    assert proposal.verdict.decision.direct_gain == pytest.approx(measured)
    assert dict(proposal.mixture) == pytest.approx(wanted)


def test_without_confirmation_no_candidate_is_trained():
    fake = context({"web": 0.8, "code": 0.1, "math": 0.1})
    TrainedProbes(steps=64, verify=False).propose(fake)
    assert not any(call.label.startswith("verification") for call in fake.calls)


def test_short_probes_have_fewer_looks():
    assert [f.steps for f in TrainedProbes(steps=200).looks] == [100, None]
    assert [f.steps for f in TrainedProbes(steps=9).looks] == [4, None]
    assert [f.steps for f in TrainedProbes(steps=4).looks] == [None]


def test_candidates_are_judged_on_sequences_that_the_law_was_not_fitted_to():
    """The fitted sequences alone like what the law proposes, by a nat: nothing of that is in the measured gain."""

    class Flattering(FakeContext):
        def simulate(self, design, points, **asked):
            found = super().simulate(design, points, **asked)
            if not asked["label"].startswith("verification"):
                return found
            kept = self.calls[1].fidelity.stride(self.sequences)
            first = np.arange(len(points))[:, None] == 0
            liked = [np.where(first, 0.0, np.arange(self.sequences) % kept == 0) for _ in found.nll]
            return replace(found, nll=tuple(n - 100.0 * a for n, a in zip(found.nll, liked, strict=True)))

    plain = context({"web": 0.8, "code": 0.1, "math": 0.1})
    fake = Flattering(problem=plain.problem, surface=plain.surface, course=course, rule=plain.rule)
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


def test_a_measured_rise_counts_as_it_is_whatever_a_gain_is_worth_in_the_stage():
    """Between the probes lies a harm to web that no law foretells, a twentieth of a nat and allowed, or half of one and not."""

    def harmful(harm):
        def losses_of(tokens):
            losses, shares = course(tokens), tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1.0)
            losses[:, 0] += harm * ((shares.max(axis=1) > 0.3) & (shares.max(axis=1) < 0.75))
            return losses

        return losses_of

    limit = Constraints(max_loss={"web": 3.0}, current_loss={"web": 3.0})
    method = TrainedProbes(steps=64, discrepancy=Discrepancy(4.0, 0.1))
    told = {}
    for harm in (0.05, 0.5):
        found = method.propose(context({"web": 0.8, "code": 0.1, "math": 0.1}, harmful(harm), limits=limit))
        told[harm] = [c["breaks"] for c in found.evidence["candidates"]]
    assert told[0.05] == [[], []]
    assert ["web"] in told[0.5]


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


def unsure(count=20):
    """Proposals of searches in which probes' own noise is as large as what there is to gain."""
    old = {"web": 0.5, "code": 0.2, "math": 0.3}
    return [METHOD.propose(context(old, order=0.02, seed=seed)) for seed in range(count)]


@pytest.mark.slow
def test_law_and_probes_together_find_more_of_what_there_is_to_gain_than_probes_alone():
    proposals = unsure()
    decisions = [p.verdict.decision for p in proposals]
    alone = [surely(d.direct_gain, d.direct_error, DecisionSettings(), tries=2) >= 0.9 for d in decisions]
    moves = [d.action == "move" for d in decisions]
    assert sum(moves) > sum(alone)
    for proposal, moved in zip(proposals, moves, strict=True):
        tried = proposal.evidence["candidates"]
        sure = [c for c in tried if c["probability"] >= 0.9 and not c["breaks"]]
        assert moved == bool(sure)  # whichever it is, the optimum or half-way to it
        if sure:
            assert dict(proposal.mixture) == max(sure, key=lambda c: c["gain"])["mixture"]
    now = float(truth().predict(np.array([0.5, 0.2, 0.3])).mean())
    gained = [
        now - float(truth().predict(p.mixture.weights).mean()) for p in proposals if p.verdict.decision.action == "move"
    ]
    assert np.mean(np.array(gained) > 0) >= 0.9  # as sure as was said


def test_what_is_known_together_is_said_and_within_its_interval():
    proposal = METHOD.propose(context({"web": 0.5, "code": 0.2, "math": 0.3}, order=0.01))
    decision, evidence = proposal.verdict.decision, proposal.evidence
    best = max(evidence["candidates"], key=lambda c: c["gain"])
    assert decision.joint_gain == best["gain"]
    assert decision.direct_gain == best["measured_gain"]
    low, high = decision.joint_interval
    assert low < decision.joint_gain < high
    assert (decision.joint_probability >= decision.confidence) == (decision.action == "move")
    assert f"together {decision.joint_gain:+.4f}" in decision.reason


@pytest.mark.slow
def test_what_another_order_changes_is_read_off_the_mixture_that_was_trained_twice():
    """Errors of measured gains grow with the noise of the order, and only with it."""
    errors = []
    for order in (0.0, 0.01, 0.04):
        found = [METHOD.propose(context({"web": 0.8, "code": 0.1, "math": 0.1}, order=order, seed=s)) for s in (0, 1)]
        errors.append(np.mean([p.evidence["candidates"][0]["measured_error"] for p in found]))
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 2 * errors[1]


def test_what_is_sure_comes_before_what_gains_more_and_else_the_surest_is_taken():
    def candidate(name, gain, probability):
        told = Estimate(gain, 0.01)
        return Candidate(
            name=name,
            mixture=Mixture.uniform(DOMAINS),
            measured=told,
            together=told,
            breaks=(),
            probability=probability,
        )

    far, near = candidate("far", 0.3, 0.8), candidate("near", 0.1, 0.95)
    assert chosen([far, near], 0.9) is near
    assert chosen([far, near], 0.99) is near
    assert chosen([candidate("far", 0.3, 0.91), near], 0.9).name == "far"
