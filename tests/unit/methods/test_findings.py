"""Domains that help nobody, near-copies, and how much of a new domain harms no old one."""

import numpy as np
import pytest

from opmix.methods.findings import critical_share, findings
from opmix.methods.op_mix import OpMix
from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.protocols.mixing_method import DecisionProblem
from opmix.testing import FakeContext, log_linear_surface


def stage(domains, old):
    return DecisionProblem(
        domains=tuple(domains),
        old=Mixture.of(old),
        budget_tokens=64_000,
        available_tokens=dict.fromkeys(domains, 10**6),
    )


def searched(domains, worth, omega=None):
    """A search between domains, by what a token of each (columns) is worth to each evaluation set (rows)."""

    def course(tokens):
        return 3.0 - 0.2 * np.log1p((tokens / 6400) ** 0.7 @ np.array(worth, dtype=float).T)

    context = FakeContext(
        problem=stage(domains, dict.fromkeys(domains, 1 / len(domains))),
        surface=log_linear_surface([[0.0] * len(domains)] * len(domains)),
        course=course,
        settings=SolveSettings(kl=0.0, objective="mean" if omega is None else "weighted", omega=omega),
    )
    return findings(TrainedProbes(steps=64, verify=False).propose(context))


def test_a_domain_that_helps_no_set_that_counts_is_named():
    worth = [[6, 1, 0], [1, 6, 0], [0, 0, 6]]
    counted = np.array([0.5, 0.5, 0.0])
    told = searched(("web", "code", "junk"), worth, counted)
    assert [t.split()[0] for t in told] == ["junk"]
    assert searched(("web", "code", "junk"), worth) == []  # it helps itself, where that counts


def test_near_copies_are_named_together():
    told = searched(("web", "code", "copy"), [[6, 0.5, 0.5], [0.5, 6, 5.5], [0.5, 5.5, 6]])
    assert len(told) == 1
    assert told[0].startswith("code and copy")


def test_the_critical_share_of_a_new_domain_is_always_told():
    surface = log_linear_surface([[0.0, 1.0], [0.0, -1.0]])
    context = FakeContext(problem=stage(("web", "code"), {"web": 1.0}), surface=surface, steps=64)
    proposal = OpMix(verify=False).propose(context)
    told = findings(proposal)
    assert [t.split(":")[0] for t in told] == ["how much code the old domains bear"]
    law, coordinates = proposal.fit.law, proposal.verdict.coordinates
    shares = [
        critical_share(law, coordinates, 1, {"web": float(law.predict([[1 - s, s]])[0, 0]), "code": 0.0}, law.metrics)
        for s in (0.0, 0.405, 1.0)
    ]
    assert shares == pytest.approx([0.0, 0.4, 1.0])
    assert critical_share(law, coordinates, 1, {"web": 0.0, "code": 0.0}, law.metrics) is None
