"""Adaptive schedules on known surfaces: which rungs are climbed, when they stop, and what is recorded."""

from itertools import pairwise

import numpy as np
import pytest

from opmix.errors import LawError
from opmix.methods.adaptive import AdaptiveSchedule, Rung, WholeRun
from opmix.methods.op_mix import OpMix
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity
from opmix.testing import FakeContext, log_linear_surface

DOMAINS = ("web", "code", "math")
T = [[-2.0, 0.0, 0.3], [0.2, -1.0, 0.0], [0.1, 0.3, -0.5]]
INSIDE = log_linear_surface([[-1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [-0.5, -0.5, 0.5]])
"""Best between the ends of the line, where sequences that differ move the optimum."""
NEVER, AT_ONCE = 0.0, 1e9


def context(old=None, **given):
    old = {"web": 0.6, "code": 0.4} if old is None else old
    problem = DecisionProblem(
        domains=DOMAINS,
        old=Mixture.of(old),
        budget_tokens=10_000,
        available_tokens=dict.fromkeys(DOMAINS, 10_000),
    )
    rule = DecisionSettings(draws=20)
    return FakeContext(**{"problem": problem, "surface": log_linear_surface(T), "rule": rule, **given})


def schedule(tolerance, **given):
    return AdaptiveSchedule(**{"steps": 64, "sequences": 64, "tolerance": tolerance, **given})


def search(fake, tolerance, **given):
    outcome = OpMix(schedule=schedule(tolerance, **given)).search(fake)
    return outcome, outcome.proposal.evidence["adaptive"]


def test_rungs_double_the_run_and_the_sequences():
    plan = schedule(0.05, steps=200)
    assert plan.rung_steps == (13, 25, 50, 100)
    assert [plan.fidelity(Rung(13, level)).thinning for level in range(plan.doublings + 1)] == [8, 4, 2, 1]
    assert schedule(0.05, steps=200, first=40, sequences=8).rung_steps == (50, 100)
    assert schedule(0.05, steps=200, first=200, sequences=8).rung_steps == ()
    assert schedule(0.05, steps=1, sequences=6).rung_steps == ()
    assert schedule(0.05, steps=1, sequences=6).doublings == 0


def test_points_double_up_to_all_of_the_design():
    on_a_line = OpMix().design(context().problem)
    assert [schedule(0).points_at(Rung(4, 0, level), on_a_line) for level in range(4)] == [3, 6, 9, 9]
    assert schedule(0, points=5).points_at(Rung(4, 0, 3), on_a_line) == 5
    between = OpMix().design(context(old=dict.fromkeys(DOMAINS, 1 / 3)).problem)
    assert [schedule(0).points_at(Rung(4, 0, level), between) for level in range(4)] == [4, 8, 14, 14]


@pytest.mark.slow
def test_a_schedule_that_is_never_content_ends_in_the_whole_search():
    fake = context()
    outcome, said = search(fake, NEVER)
    whole = OpMix().search(context())
    assert dict(outcome.proposal.mixture) == dict(whole.proposal.mixture)
    np.testing.assert_array_equal(outcome.simulated.losses, whole.simulated.losses)
    assert [s["steps"] for s in said["segments"]] == [4, 8, 16, 32, 64]
    assert [c.fidelity for c in fake.calls] == [*(Fidelity(steps, 8) for steps in (4, 8, 16, 32)), FULL]
    assert fake.calls[-1].label == "proxies"
    assert [c.label for c in fake.calls[:2]] == ["proxies-at-4-6-every-8", "proxies-at-8-6-every-8"]
    assert said["steps"] == said["of"] == 64
    assert "for all 64 steps" in said["reason"]


def test_the_second_rung_is_the_first_that_can_end_a_search():
    fake = context()
    outcome, said = search(fake, AT_ONCE)
    assert said["steps"] == 8
    assert [s["steps"] for s in said["segments"]] == [4, 8]
    assert said["segments"][0]["change"] is None
    assert said["segments"][1]["change"] is not None
    assert "stopped after 8 of 64 steps" in said["reason"]
    assert outcome.simulated.fidelity == Fidelity(8, 8)
    assert sum(s["flops"] for s in said["segments"]) == pytest.approx(3 * 8 + 1e-3 * 3 * 8 * 2 * 7)


@pytest.mark.slow
def test_nothing_is_trained_twice():
    fake = context()
    _, said = search(fake, NEVER)
    evaluated = 1e-3 * 3 * sum((len(c.points) + 1) * 64 / c.fidelity.thinning for c in fake.calls)
    assert sum(s["flops"] for s in said["segments"]) == pytest.approx(3 * 64 + evaluated)


def test_a_rung_without_an_answer_ends_nothing_and_is_recorded():
    fake, method = context(), OpMix()

    def fit(fidelity, points):
        if fidelity.steps == 4:
            raise LawError("too few points")
        return method.outcome_at(fake, fidelity, points)

    outcome = schedule(AT_ONCE).run(fit, method.design(fake.problem))
    said = outcome.proposal.evidence["adaptive"]
    assert said["segments"][0] == {"steps": 4, "error": "too few points"}
    assert [s["steps"] for s in said["segments"]] == [4, 8, 16]  # the second has none before it, so it ends nothing


def test_other_errors_are_not_swallowed():
    def fit(fidelity, points):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        schedule(AT_ONCE).run(fit, OpMix().design(context().problem))


def finer(fake, tolerance):
    """What changes between rungs of the same steps."""
    search(fake, tolerance)
    calls = fake.calls
    return [
        ("points" if len(b.points) > len(a.points) else "sequences")
        for a, b in pairwise(calls)
        if a.fidelity.steps == b.fidelity.steps
    ]


@pytest.mark.slow
def test_where_sequences_are_what_is_uncertain_they_are_doubled_first():
    assert finer(context(noise=0.3, surface=INSIDE), 0.15)[:1] == ["sequences"]


@pytest.mark.slow
def test_where_the_law_is_what_is_uncertain_points_are_added():
    bent = context(surface=lambda P: log_linear_surface(T)(P) + 0.1 * np.sin(25 * P[:, [2]]))
    assert finer(bent, 0.1)[:1] == ["points"]


@pytest.mark.slow
def test_a_finer_rung_that_costs_more_than_more_training_is_not_climbed():
    assert finer(context(noise=0.3, surface=INSIDE, sequence_flops=10.0), 0.15) == []


def test_a_stopped_search_is_confirmed_at_the_fidelity_it_stopped_at():
    fake = context(old={"web": 0.8, "code": 0.1, "math": 0.1})
    proposal = OpMix(schedule=schedule(AT_ONCE)).propose(fake)
    assert proposal.verdict.decision.action == "move"
    assert fake.calls[-1].label == "verification"
    assert fake.calls[-1].fidelity == Fidelity(8, 8)
    assert proposal.evidence["adaptive"]["steps"] == 8


def test_a_whole_run_says_nothing_of_rungs():
    fake = context()
    outcome = OpMix(schedule=WholeRun()).search(fake)
    assert outcome.proposal.evidence == {}
    assert [c.fidelity for c in fake.calls] == [FULL]


@pytest.mark.parametrize("old", [{"web": 0.6, "code": 0.4}, dict.fromkeys(DOMAINS, 1 / 3)])
@pytest.mark.parametrize("sequences", [6, 16, 64])
def test_no_course_is_dearer_than_the_dearest(old, sequences):
    plan, fake = schedule(NEVER, sequences=sequences), context(old=old)
    design = OpMix().design(fake.problem)
    course = plan.dearest_course(design)
    assert sorted({fidelity.steps for fidelity, _ in course}) == list(plan.rung_steps)
    finest, points = course[-1]
    assert finest.thinning == 1
    assert points == plan.points_at(Rung(4, 0, 20), design)
    assert [fidelity.steps for fidelity, _ in course].count(8) == 1 + plan.doublings + (points > 3) + (points > 6)
    assert WholeRun().dearest_course(design) == ()
