"""One table of all mixers: what the run that drives them relies on, in a world of numbers."""

import json
from functools import cache

import numpy as np
import pytest
from toy_world import NAMES, ToyBench, World, live

from opmix.errors import ConfigError
from opmix.methods.online.ado import Ado
from opmix.methods.online.aioli import Aioli
from opmix.methods.online.averaged_trial import ProxySettings
from opmix.methods.online.doge import Doge, GradientAlignment
from opmix.methods.online.doremi import DoReMi, GroupDro
from opmix.methods.online.grape import Grape
from opmix.methods.online.odm import Odm
from opmix.methods.online.skill_it import SkillIt
from opmix.methods.online.tikmix import Tikmix
from opmix.methods.online.weights import at_least, exponentiated, interval
from opmix.methods.registry import ENTRIES, entry_of
from opmix.protocols.online_mixer import Observation

MIXERS = {
    "odm": Odm(),
    "ado": Ado(),
    "ado-uniform": Ado(prior="uniform"),
    "skill_it": SkillIt(),
    "skill_it-pairs": SkillIt(graph="pairs"),
    "aioli": Aioli(),
    "aioli-ema": Aioli(ema=0.1, every=40),
    "grape": Grape(),
    "tikmix": Tikmix(),
    "dro": GroupDro(),
    "alignment": GradientAlignment(),
    "often": Odm(every=1),
}
TOTAL = 200
LIVES = [pytest.param(name, marks=pytest.mark.slow if name.startswith("ado") else ()) for name in MIXERS]
"""Of those, whose whole runs are looked at; ADO fits curves at every step."""


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


@pytest.fixture(params=MIXERS)
def mixer(request):
    return MIXERS[request.param]


@cache
def lived(name):
    """A whole run of one of the mixers, once for all tests that look at it."""
    return live(MIXERS[name], ToyBench(), TOTAL)


def test_all_mixers_of_the_catalogue_are_in_the_table():
    online = [
        entry
        for entry in ENTRIES
        if entry.family == "online"
        and entry.path.partition(":")[0].rpartition(".")[2]
        in (
            "odm",
            "ado",
            "skill_it",
            "aioli",
            "grape",
            "tikmix",
        )
    ]
    assert len(online) == 6
    assert {type(entry.make()) for entry in online} <= {type(m) for m in MIXERS.values()}
    for name in ("doremi", "doge"):
        assert entry_of(name).family == "searched"


@pytest.mark.parametrize("name", LIVES)
def test_segments_are_positive_and_on_the_simplex(name):
    segments, _, _ = lived(name)
    assert sum(s.steps for s in segments) == TOTAL
    assert len(segments) >= 5
    for segment in segments:
        assert segment.steps >= 1
        assert segment.mixture.names == NAMES
        assert segment.mixture.weights.sum() == pytest.approx(1)
        assert np.isfinite(segment.mixture.weights).all()
    assert any(s.mixture != segments[0].mixture for s in segments)


@pytest.mark.parametrize("name", LIVES)
def test_a_state_that_was_written_and_read_goes_on_the_same(name):
    mixer, (whole, last, kept) = MIXERS[name], lived(name)
    again, state, _ = live(mixer, ToyBench(), TOTAL, rewrite=through_json)
    assert [(s.mixture, s.steps) for s in again] == [(s.mixture, s.steps) for s in whole]
    assert through_json(last) == state
    assert len(kept) >= 4
    for segments, between, segment in (kept[1], kept[len(kept) // 2], kept[-1]):
        resumed, _, _ = live(mixer, ToyBench(), TOTAL, start=(segments, through_json(between), segment))
        assert resumed == whole


def test_updates_leave_what_they_were_given_alone(mixer):
    bench = ToyBench()
    state, segment = mixer.init(bench, TOTAL)
    before = json.dumps(state)
    seen, _ = bench.world.observe(segment, np.zeros(3), 0, TOTAL)
    first, second = mixer.update(state, seen), mixer.update(state, seen)
    assert json.dumps(state) == before
    assert first == second


@pytest.mark.parametrize("total", [1, 2, 7])
def test_runs_of_few_steps(mixer, total):
    segments, _, _ = live(mixer, ToyBench(), total)
    assert sum(s.steps for s in segments) == total


def test_only_the_signals_that_were_asked_for_are_used(mixer):
    bench = ToyBench()
    state, segment = mixer.init(bench, TOTAL)
    seen, _ = bench.world.observe(segment, np.zeros(3), 0, TOTAL)
    names = {"train_loss", "held_out", "excess", "gradients", "gradient_norms"}
    asked = set(mixer.signals) | ({"gradient_norms"} if "gradients" in mixer.signals else set())
    deaf = Observation(**{k: v for k, v in vars(seen).items() if k not in names - asked})
    assert mixer.update(state, deaf) == mixer.update(state, seen)


def test_a_single_domain_stays_whole():
    world = World(np.array([1.0]), np.array([2.0]), np.eye(1))
    for name, mixer in MIXERS.items():
        bench = ToyBench(world)
        bench.problem = type(bench.problem)(
            domains=("web",), old=None, budget_tokens=1000, available_tokens={"web": 10}
        )
        state, segment = mixer.init(bench, 10)
        seen = Observation(
            step=1,
            total_steps=10,
            mixture=segment.mixture,
            tokens=np.array([100.0]),
            learning_rate=1.0,
            train_loss=np.array([2.5]),
            held_out=np.array([2.5]),
            gradients=np.eye(1),
            gradient_norms=np.ones(1),
            excess=np.zeros(1),
        )
        assert mixer.update(state, seen)[1].mixture.weights.tolist() == [1.0], name


@pytest.mark.parametrize(("method", "label", "reference"), [(DoReMi(), "doremi", True), (Doge(), "doge", False)])
def test_proxy_runs_are_averaged(method, label, reference):
    bench = ToyBench()
    made = method.propose(bench)
    ((called, proxy, against),) = bench.calls
    assert (called, proxy.tokens, proxy.start) == (label, 2000, "current")
    assert against == (bench.problem.by_size if reference else None)
    course = made.evidence["course"]
    mean = sum(c["steps"] * np.array(list(c["mixture"].values())) for c in course) / sum(c["steps"] for c in course)
    assert made.mixture.weights == pytest.approx(mean)
    assert len(course) == 20
    assert json.dumps(made.evidence)
    assert method.propose(ToyBench()).mixture == made.mixture


def test_settings_that_cannot_be():
    for wrong in (lambda: Aioli(one_hot=0.0), lambda: Ado(points=2), lambda: ProxySettings(share=0.0)):
        with pytest.raises(ConfigError, match="expected"):
            wrong()
    with pytest.raises(ConfigError, match="every is 0; expected"):
        Odm(every=0).init(ToyBench(), 10)


def test_the_arithmetic_of_weights():
    assert [interval(None, 100), interval(None, 7), interval(3, 7), interval(None, 100, parts=5)] == [5, 1, 3, 20]
    assert exponentiated([0.0, 1.0], [40.0, 0.0])[0] > 0.1  # a weight that came to nothing can come back
    floored = at_least(np.array([0.5, 0.45, 0.05, 0.0]), 0.1)
    assert floored.tolist() == pytest.approx([0.8 * 0.5 / 0.95, 0.8 * 0.45 / 0.95, 0.1, 0.1])
    assert at_least(np.array([1.0, 0.0]), 0.9).tolist() == [0.5, 0.5]
    pushed = at_least(np.array([0.85, 0.11, 0.04]), 0.105)  # paying for the third pushes the second below
    assert pushed.min() == pytest.approx(0.105)
