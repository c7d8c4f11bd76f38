"""opmix' own methods, laws and exporters keep to what the public suites ask of others; and the suites catch what does not."""

import dataclasses

import numpy as np
import pytest

from opmix.errors import LawError
from opmix.exporters import EXPORTERS
from opmix.methods.fixed import Uniform
from opmix.methods.op_mix import OpMix
from opmix.methods.swarm.merge_mix import MergeMix
from opmix.methods.swarm.olmix import Olmix
from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.effective_tokens_fit import fit_effective_tokens
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.testing import check_exporter, check_law, check_method


def in_effective_tokens(mixtures, losses, *, domains, metrics):
    return fit_effective_tokens(
        mixtures,
        np.full(len(mixtures), 1e6),
        losses,
        domains=domains,
        metrics=metrics,
        probes=tuple(map(str, range(len(mixtures)))),
        stage_tokens=1_000_000,
        own=dict(zip(metrics, domains, strict=True)),
    )


@pytest.mark.parametrize("fit", [fit_law, in_effective_tokens])
def test_both_laws_keep_their_promises(fit):
    check_law(fit)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(OpMix, marks=pytest.mark.slow),
        pytest.param(lambda: TrainedProbes(steps=64), marks=pytest.mark.slow),
        Olmix,
        MergeMix,
        Uniform,
    ],
    ids=["op_mix", "probes", "olmix", "merge", "fixed"],
)
def test_methods_keep_theirs(make):
    check_method(make)


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_exporter_keeps_its(name):
    check_exporter(EXPORTERS[name])


class Unsteady:
    """Proposes by the clock."""

    count = 0

    def propose(self, context):
        type(self).count += 1
        return Proposal(
            mixture=Mixture.normalised({d: 1 + self.count * i for i, d in enumerate(context.problem.domains)})
        )


class Narrow:
    def propose(self, context):
        return Proposal(mixture=Mixture.uniform(context.problem.domains[:1]))


@pytest.mark.parametrize(("method", "said"), [(Unsteady, "twice"), (Narrow, "over")])
def test_a_method_that_breaks_one_is_told(method, said):
    with pytest.raises(AssertionError, match=said):
        check_method(method)


def test_a_law_that_breaks_one_is_told():
    def bent(mixtures, losses, **names):
        return fit_law(mixtures, -losses, **names)

    with pytest.raises((AssertionError, LawError)):
        check_law(bent)

    def careless(mixtures, losses, **names):
        return fit_law(mixtures, np.nan_to_num(losses, nan=3.0), **names)

    with pytest.raises(AssertionError, match="no number was fitted"):
        check_law(careless)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda e: dataclasses.replace(e, text="a: [" + e.text), "cannot be read"),
        (lambda e: dataclasses.replace(e, weights={"web": 1.0}), "weights"),
        (
            lambda e: dataclasses.replace(e, text="".join(line for line in e.text.splitlines(True) if line[0] != "#")),
            "say",
        ),
    ],
)
def test_an_exporter_that_breaks_one_is_told(broken, said):
    class Broken(type(EXPORTERS["trl"])):
        """As TRL's."""

        def export(self, plan):
            return broken(super().export(plan))

    with pytest.raises(AssertionError, match=said):
        check_exporter(Broken())
