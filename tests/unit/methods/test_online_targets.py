"""Mixers that serve held-out sets, told of targets: sets that are no domain's own, each with a weight."""

from dataclasses import dataclass

import numpy as np
import pytest
from toy_world import NAMES, ToyBench, World, live

from opmix.methods.online.aioli import Aioli
from opmix.methods.online.doge import GradientAlignment
from opmix.methods.online.grape import Grape
from opmix.methods.online.tikmix import Tikmix
from opmix.methods.registry import ENTRIES
from opmix.protocols.online_mixer import SERVING, Observation

MIXERS = {"aioli": Aioli(), "doge": GradientAlignment(), "grape": Grape(), "tikmix": Tikmix()}
WEIGHED = ("aioli", "doge", "grape")
"""TiKMiX balances its tasks, all alike."""


@dataclass
class Aimed(World):
    """E targets, each helped by some domains (`helps`, (D, E)), with weights of mean one."""

    weights: tuple = (1.0,)

    def observe(self, segment, tokens, step, total):
        after = tokens + segment.mixture.weights * segment.steps * self.step_tokens
        slopes = self.slopes(after) * 1e3
        seen = Observation(
            step=step + segment.steps,
            total_steps=total,
            mixture=segment.mixture,
            tokens=after,
            learning_rate=1 - step / total,
            held_out=self.losses(after),
            weights=np.array(self.weights),
            gradients=slopes,
            gradient_norms=np.linalg.norm(slopes, axis=1),
        )
        return seen, after


def lived(mixer, helps, weights=(1.0,)):
    """Mean share of each domain over a run."""
    helps = np.array(helps, dtype=float).T
    count = helps.shape[1]
    world = Aimed(floors=np.ones(count), scales=np.full(count, 3.0), helps=helps, weights=tuple(weights))
    segments, _, _ = live(mixer, ToyBench(world), 200)
    return sum(s.steps * s.mixture.weights for s in segments) / 200


def test_all_that_serve_held_out_sets_are_here_or_say_why_not():
    serving = {e.name for e in ENTRIES if SERVING & getattr(e.make(), "signals", frozenset())}
    assert {e.name for e in ENTRIES if e.untargeted} == serving - set(MIXERS)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("domain", range(3))
def test_the_domain_that_helps_the_target_gets_most(name, domain):
    helps = np.where(np.arange(3) == domain, 1.0, 0.05)
    shares = lived(MIXERS[name], [helps])
    assert NAMES[int(np.argmax(shares))] == NAMES[domain]


@pytest.mark.parametrize("name", WEIGHED)
def test_of_two_targets_the_heavier_one_is_served_more(name):
    helps = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    first, second = (lived(MIXERS[name], helps, w) for w in ((1.8, 0.2), (0.2, 1.8)))
    assert first[0] > first[2]
    assert second[2] > second[0]


@pytest.mark.parametrize("name", MIXERS)
def test_more_targets_than_domains(name):
    shares = lived(MIXERS[name], [[1.0, 0.1, 0.1]] * 5, (1.0,) * 5)
    assert int(np.argmax(shares)) == 0
