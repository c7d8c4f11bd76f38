"""A world of numbers in which mixers can be watched: losses by domain fall by a known law of tokens, and domains help each other."""

from dataclasses import dataclass, field

import numpy as np

from opmix.protocols.mixing_method import DecisionProblem
from opmix.protocols.online_mixer import AveragedTrial, MixerSegment, Observation
from opmix.protocols.trials import Trials

NAMES = ("web", "code", "math")
HELPS = np.array([[1.0, 0.2, 0.0], [0.3, 1.0, 1.2], [0.0, 0.1, 1.0]])
"""What a token of the row's domain is worth to the column's."""


@dataclass
class World:
    """`L_j(n) = floor_j + scale_j (1 + sum_i n_i HELPS_ij / unit)^-0.5`, n tokens of each domain."""

    floors: np.ndarray = field(default_factory=lambda: np.array([2.0, 1.0, 1.5]))
    scales: np.ndarray = field(default_factory=lambda: np.array([3.0, 4.0, 2.0]))
    helps: np.ndarray = field(default_factory=lambda: HELPS.copy())
    unit: float = 2000.0
    step_tokens: int = 100

    def losses(self, tokens):
        return self.floors + self.scales * (1 + tokens @ self.helps / self.unit) ** -0.5

    def slopes(self, tokens):
        """`-dL_j / dn_i`, (D, E)."""
        return self.helps * (self.scales * 0.5 / self.unit * (1 + tokens @ self.helps / self.unit) ** -1.5)

    def observe(self, stint, tokens, step, total):
        """What happened when `stint` was trained, and the tokens after it."""
        after = tokens + stint.mixture.weights * stint.steps * self.step_tokens
        drawn = stint.mixture.weights > 0
        seen = Observation(
            step=step + stint.steps, total_steps=total, mixture=stint.mixture, tokens=after, learning_rate=1 - step / total,
            train_loss=np.where(drawn, (self.losses(tokens) + self.losses(after)) / 2, np.nan), held_out=self.losses(after),
            gradients=self.slopes(after) * 1e3, gradient_norms=np.linalg.norm(self.slopes(after) * 1e3, axis=1),
            excess=np.where(drawn, np.maximum(self.losses(after) - self.losses(after.sum() * np.array([0.6, 0.3, 0.1])), 0), np.nan),
        )  # fmt: skip
        return seen, after


class ToyBench:
    """A bench on that world."""

    def __init__(self, world=None, *, names=NAMES, budget=20_000, seed=0):
        self.world = world or World()
        self.stage = DecisionProblem(
            domains=names, old=None, budget_tokens=budget, seed=seed,
            available_tokens=dict(zip(names, (6000, 3000, 1000), strict=True)),
        )  # fmt: skip
        self.calls = []

    @property
    def tokens_per_step(self):
        return self.world.step_tokens

    def train(self, mixtures, proxy, *, label):
        self.calls.append((label, proxy, tuple(mixtures)))
        losses = np.stack([self.world.losses(m.weights * proxy.tokens) for m in mixtures])
        return Trials(
            metrics=self.stage.domains, mixtures=tuple(mixtures), losses=losses, standard_errors=np.full_like(losses, 1e-3),
            baseline=self.world.losses(np.zeros(len(self.stage.domains))),
        )  # fmt: skip

    def watch(self, mixer, proxy, *, label, reference=None):
        self.calls.append((label, proxy, reference))
        total = max(1, round(proxy.tokens / self.tokens_per_step))
        stints, state, _ = live(mixer, self, total)
        tokens = sum(s.mixture.weights * s.steps * self.tokens_per_step for s in stints)
        return AveragedTrial(stints=tuple(stints), state=state, losses=self.world.losses(tokens))


def live(mixer, bench, total, *, start=None, rewrite=None):
    """A whole run; `rewrite` is applied to every state, `start` goes on from (stints, state, stint).

    Returns stints, the last state, and what can be gone on from after every stint.
    """
    stints, state, stint = start or ([], *mixer.init(bench, total))
    stints, kept = list(stints), []
    tokens = sum(
        (s.mixture.weights * s.steps * bench.world.step_tokens for s in stints), np.zeros(len(bench.stage.domains))
    )
    while True:
        done = sum(s.steps for s in stints)
        if rewrite is not None:
            state = rewrite(state)
        kept.append((list(stints), state, stint))
        stint = MixerSegment(stint.mixture, min(stint.steps, total - done))
        seen, tokens = bench.world.observe(stint, tokens, done, total)
        stints.append(stint)
        if seen.step >= total:
            return stints, state, kept
        state, stint = mixer.update(state, seen)
