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

    def observe(self, segment, tokens, step, total):
        """What happened when `segment` was trained, and the tokens after it."""
        after = tokens + segment.mixture.weights * segment.steps * self.step_tokens
        drawn = segment.mixture.weights > 0
        seen = Observation(
            step=step + segment.steps,
            total_steps=total,
            mixture=segment.mixture,
            tokens=after,
            learning_rate=1 - step / total,
            train_loss=np.where(drawn, (self.losses(tokens) + self.losses(after)) / 2, np.nan),
            held_out=self.losses(after),
            gradients=self.slopes(after) * 1e3,
            gradient_norms=np.linalg.norm(self.slopes(after) * 1e3, axis=1),
            excess=np.where(
                drawn, np.maximum(self.losses(after) - self.losses(after.sum() * np.array([0.6, 0.3, 0.1])), 0), np.nan
            ),
        )
        return seen, after


class ToyBench:
    """A bench on that world."""

    def __init__(self, world=None, *, names=NAMES, budget=20_000, seed=0):
        self.world = world or World()
        self.problem = DecisionProblem(
            domains=names,
            old=None,
            budget_tokens=budget,
            seed=seed,
            available_tokens=dict(zip(names, (6000, 3000, 1000), strict=True)),
        )
        self.calls = []

    @property
    def tokens_per_step(self):
        return self.world.step_tokens

    def train(self, mixtures, proxy, *, label):
        self.calls.append((label, proxy, tuple(mixtures)))
        losses = np.stack([self.world.losses(m.weights * proxy.tokens) for m in mixtures])
        return Trials(
            metrics=self.problem.domains,
            mixtures=tuple(mixtures),
            losses=losses,
            standard_errors=np.full_like(losses, 1e-3),
            baseline=self.world.losses(np.zeros(len(self.problem.domains))),
        )

    def watch(self, mixer, proxy, *, label, reference=None):
        self.calls.append((label, proxy, reference))
        total = max(1, round(proxy.tokens / self.tokens_per_step))
        segments, state, _ = live(mixer, self, total)
        tokens = sum(s.mixture.weights * s.steps * self.tokens_per_step for s in segments)
        return AveragedTrial(segments=tuple(segments), state=state, losses=self.world.losses(tokens))


def live(mixer, bench, total, *, start=None, rewrite=None):
    """A whole run; `rewrite` is applied to every state, `start` goes on from (segments, state, segment).

    Returns segments, the last state, and what can be gone on from after every segment.
    """
    segments, state, segment = start or ([], *mixer.init(bench, total))
    segments, kept = list(segments), []
    tokens = sum(
        (s.mixture.weights * s.steps * bench.world.step_tokens for s in segments), np.zeros(len(bench.problem.domains))
    )
    while True:
        done = sum(s.steps for s in segments)
        if rewrite is not None:
            state = rewrite(state)
        kept.append((list(segments), state, segment))
        segment = MixerSegment(segment.mixture, min(segment.steps, total - done))
        seen, tokens = bench.world.observe(segment, tokens, done, total)
        segments.append(segment)
        if seen.step >= total:
            return segments, state, kept
        state, segment = mixer.update(state, seen)
