"""The probes' own predictions, mixed, beside the law: what they choose, and when the two are said to disagree."""

import numpy as np
import pytest

from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.protocols.mixing_method import DecisionProblem
from opmix.results.opinion import KEY, Opinion
from opmix.testing import FakeContext, log_linear_surface

DOMAINS = ("web", "code", "math")


def searched(course, **told):
    problem = DecisionProblem(
        domains=DOMAINS,
        old=Mixture.uniform(DOMAINS),
        budget_tokens=32_000,
        available_tokens=dict.fromkeys(DOMAINS, 10**6),
    )
    fake = FakeContext(
        problem=problem,
        surface=log_linear_surface([[0.0] * 3] * 3),
        course=course,
        rule=DecisionSettings(draws=40),
        **told,
    )
    return fake, TrainedProbes(steps=64).propose(fake)


def code_helps(tokens):
    return 3.0 - 0.2 * np.log1p((tokens / 6400) ** 0.6 @ np.array([[0.5], [9.0], [0.5]])) * np.ones(3)


def test_it_is_formed_from_the_searchs_own_probes_and_agrees_where_they_do():
    fake, proposal = searched(code_helps)
    told = Opinion.read(proposal.evidence)
    assert max(told.mixture, key=told.mixture.get) == "code"
    assert told.gain > 0
    assert told.cosine > 0.9
    assert told.verdict.startswith(("agrees", "disagrees in part: it changes shares in the same direction"))
    first, asked = fake.calls[0], next(c for c in fake.calls if c.label == "tokens-second-opinion")
    assert np.array_equal(asked.design.R, first.design.R)  # found, not trained
    assert asked.fidelity.thinning == fake.calls[1].fidelity.thinning > 1


def test_the_objective_is_the_searchs():
    def own(tokens):
        return 3.0 - 0.2 * np.log1p(9 * (tokens / 6400) ** 0.6)

    for wanted in range(3):
        settings = SolveSettings(objective="weighted", omega=np.eye(3)[wanted], kl=0.0)
        _, proposal = searched(own, settings=settings)
        told = Opinion.read(proposal.evidence)
        assert max(told.mixture, key=told.mixture.get) == DOMAINS[wanted]


@pytest.mark.parametrize(
    ("mixture", "proposal", "said"),
    [
        ((0.2, 0.7, 0.1), (0.2, 0.7, 0.1), "agrees: it changes shares in the same direction, inside"),
        ((0.0, 1.0, 0.0), (0.2, 0.7, 0.1), "disagrees in part: it changes shares in the same direction"),
        ((0.8, 0.1, 0.1), (0.1, 0.8, 0.1), "disagrees: it changes shares in another direction"),
        ((1 / 3, 1 / 3, 1 / 3), (0.2, 0.7, 0.1), "disagrees in part: one of the two stays where it is"),
    ],
)
def test_disagreement_is_named(mixture, proposal, said):
    interval = {d: (p - 0.1, p + 0.1) for d, p in zip(DOMAINS, proposal, strict=True)}
    told = Opinion.of(
        mixture=dict(zip(DOMAINS, mixture, strict=True)),
        proposal=dict(zip(DOMAINS, proposal, strict=True)),
        reference=dict.fromkeys(DOMAINS, 1 / 3),
        interval=interval,
        gain=None,
    )
    assert told.verdict.startswith(said)
    assert told.verdict in told.sentence()
    assert Opinion.read({KEY: told.json()}) == told
    assert Opinion.read({}) is None
    assert Opinion.read({KEY: {"mixture": {}}}) is None
