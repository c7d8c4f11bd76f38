"""Methods that search are told of targets: what they minimise is the target's loss, wherever they would take a mean over domains."""

import numpy as np
import pytest
from fake_bench import FakeBench, stage_of

from opmix.methods.registry import METHODS

SETTINGS = {
    "regmix": {"runs": 40, "trees": 60, "simulated": 2000, "top_k": 16},
    "climb": {"runs": [20, 8, 4], "trees": 60},
    "data_mixing_laws": {"runs": 12},
    "olmix": {"kl": 0.0},
}


def surface(p, tokens):
    """Every domain learns from its own share; the target from the second domain alone."""
    return 2.0 + np.exp(-1.5 * np.column_stack([p, 2 * p[:, 1]]))


def chosen(name, targets):
    law = surface if targets else lambda p, tokens: surface(p, tokens)[:, :-1]
    stage = stage_of(("web", "code", "math"))
    bench = FakeBench(stage, law, targets=targets)
    return METHODS[name].make(SETTINGS.get(name, {})).propose(bench).mixture.weights


TREES = [pytest.param(name, marks=pytest.mark.slow) for name in ("regmix", "climb")]


@pytest.mark.parametrize("name", ["olmix", "data_mixing_laws", "merge_mix", "merge_to_mix", *TREES])
def test_the_mixture_is_the_targets(name):
    without, told = chosen(name, ()), chosen(name, ("dev",))
    assert told[1] > 0.6
    assert told[1] > without[1] + 0.15
