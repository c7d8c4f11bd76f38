"""What all methods that search before the run have in common: one table, one row a method."""

import json
from functools import cache

import numpy as np
import pytest
from fake_bench import DOMAINS, FakeBench, exponential, own_share, stage_of
from scipy.optimize import minimize

from opmix.errors import ConfigError
from opmix.methods.registry import METHODS
from opmix.methods.swarm.climb import Climb
from opmix.methods.swarm.data_mixing_laws import DataMixingLaws
from opmix.methods.swarm.merge_mix import MergeMix
from opmix.methods.swarm.merge_to_mix import MergeToMix
from opmix.methods.swarm.olmix import Olmix
from opmix.methods.swarm.regmix import RegMix

QUICK = {"trees": 40, "learning_rate": 0.2}

# How far the mean loss at the proposal may lie above its minimum, as a share of what uniform is above it. Laws are exact here, trees
# are steps; CLIMB has 28 runs. Merge to Mix can only choose between subsets, so it has tests of its own.
CLOSE = [
    (RegMix(**QUICK, runs=48, simulated=5_000, top_k=32), 0.35),
    (Olmix(kl=1e-4), 0.02),
    (DataMixingLaws(), 0.02),
    (MergeMix(), 0.02),
    (Climb(**QUICK), 0.5),
]
ALL = [method for method, _ in CLOSE] + [MergeToMix()]


def name(case):
    return type(case[0] if isinstance(case, tuple) else case).__name__


def lopsided(seed=0, noise=0.002, **of):
    """A law whose best mixture is far from uniform: `web` helps everything, `news` hurts the others."""
    stage = stage_of(seed=seed, **of)
    t = own_share(4, 1.5)
    t[:, 0] -= 1.5
    t[:3, 3] += 0.7
    return FakeBench(stage, exponential(t), noise=noise)


@cache
def proposed(kind):
    """A bench and what the method of that name proposes on it, once for all tests that look at it."""
    bench = lopsided()
    return bench, next(method for method in ALL if name(method) == kind).propose(bench)


def best(bench, num=4):
    """Minimum of the mean loss over the simplex, by many starts of SLSQP."""
    found = [
        minimize(
            lambda p: bench.law(np.abs(p)[None] / np.abs(p).sum(), 1_000_000).mean(),
            p0,
            method="SLSQP",
            bounds=[(0, 1)] * num,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        )
        for p0 in np.random.default_rng(0).dirichlet(np.ones(num), 6)
    ]
    return min(f.fun for f in found)


def trees_are_slow(methods):
    return [pytest.param(m, marks=pytest.mark.slow if isinstance(m, RegMix | Climb) else ()) for m in methods]


@pytest.mark.parametrize("method", trees_are_slow(ALL), ids=name)
def test_the_proposal_is_on_the_simplex_and_the_same_again(method):
    _, first = proposed(name(method))
    again, other = (method.propose(lopsided(seed)) for seed in (0, 1))
    assert first.mixture.names == DOMAINS
    assert first.mixture.weights.min() >= 0
    assert first.mixture.weights.sum() == pytest.approx(1, abs=1e-12)
    assert first.mixture.weights.tobytes() == again.mixture.weights.tobytes()
    if not isinstance(method, MergeToMix):  # the others draw their runs
        assert first.mixture.weights.tobytes() != other.mixture.weights.tobytes()


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [pytest.param(*c, marks=pytest.mark.slow if isinstance(c[0], RegMix | Climb) else ()) for c in CLOSE],
    ids=[name(c) for c in CLOSE],
)
def test_the_planted_optimum_is_found(method, tolerance):
    bench, proposal = proposed(name(method))
    lowest = best(bench)
    uniform = bench.objective(bench.problem.current) - lowest
    assert uniform > 0.05
    assert bench.objective(proposal.mixture) - lowest < tolerance * uniform


@pytest.mark.parametrize("method", trees_are_slow(ALL), ids=name)
def test_evidence_tells_settings_and_every_model(method):
    bench, proposal = proposed(name(method))
    told = json.loads(json.dumps(proposal.evidence))
    assert set(told["settings"]) == set(type(method).__dataclass_fields__)
    rows = told["runs" if "runs" in told else "averages"]
    assert len(rows) >= sum(count for _, _, count in bench.asked)
    for row in rows:
        assert sum(row["mixture"].values()) == pytest.approx(1)
        assert row["mean"] == pytest.approx(np.mean([row["losses"][d] for d in DOMAINS]))


@pytest.mark.parametrize("method", trees_are_slow(ALL), ids=name)
def test_a_stage_with_old_and_new_domains_is_decided_too(method):
    bench = lopsided(old={"web": 0.5, "code": 0.3, "math": 0.2})
    assert set(method.propose(bench).mixture) == set(DOMAINS)


@pytest.mark.parametrize("method", trees_are_slow(ALL), ids=name)
def test_two_domains_are_enough(method):
    stage = stage_of(("a", "b"), sizes=(3_000_000, 1_000_000))
    bench = FakeBench(stage, exponential([[-2.0, 0.0], [-1.0, -0.5]]), noise=1e-3)
    assert method.propose(bench).mixture["a"] > 0.5  # `a` helps both more


def test_all_are_in_the_catalogue_under_their_settings():
    for method in ALL:
        entries = [e for e in METHODS.values() if e.path.endswith(f":{name(method)}")]
        assert len(entries) == 1
        assert entries[0].family == "searched"
        assert entries[0].paper
        assert entries[0].make() == type(method)()


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (RegMix, {"runs": 0}, "runs: 0; expected a whole number >= 1"),
        (Olmix, {"proxy_share": 1.5}, r"proxy_share: 1.5; expected a number in \(0, 1\]"),
        (DataMixingLaws, {"horizons": (0.5,)}, "horizons: .*at least two different"),
        (MergeMix, {"huber_delta": 0.0}, "huber_delta: 0.0; expected a number > 0"),
        (MergeToMix, {"max_subsets": 1.5}, "max_subsets: 1.5; expected a whole number"),
        (Climb, {"runs": ()}, "runs: .*at least one whole number"),
    ],
)
def test_settings_out_of_range_are_told(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        kind(**settings)


def test_the_catalogue_says_whose_setting_is_wrong():
    with pytest.raises(ConfigError, match=r"regmix\.runs: 'many'; expected a whole number >= 1"):
        METHODS["regmix"].make({"runs": "many"})
