r"""Skill-It (Chen et al., arXiv 2307.14430): a graph of which domain helps which, then multiplicative weights on held-out losses.

The graph A comes first, from short trainings on the runner (section 3.2, algorithms 2 and 3):

- `singles`: train on domain i alone; `A_ij = max(0, (L_j before - L_j after) / L_j before)`. D trainings.
- `pairs`: train on j alone (loss falls by d_j) and on i and j in equal parts (by d_ij);
  `A_ij = max(0, (d_ij - d_j) / d_j)`, `A_jj = 1`. D (D + 1) / 2 trainings.

Then (algorithm 1), with the losses of the last `window` decisions:

    p_i(t + 1) ~ exp(eta sum_{tau = t - window + 1 .. t} sum_j A_ij L_j(tau)),     p_i(1) ~ exp(eta sum_j A_ij)

Assumed: a domain is a skill and every domain is a target. The published code sets the edges of hand-drawn graphs to one half; learned
ones stay as measured. Where d_j is not positive, nothing can be said of j's parents and its column stays on the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from opmix.methods.online.weights import exponentiated, interval, listed, segment, uniform
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.online_mixer import MixerSegment, Observation, Signal, State
from opmix.protocols.trials import Start, TrialModel, TrialRunner


@dataclass(frozen=True, kw_only=True)
class SkillIt:
    """The mixer."""

    eta: float = 0.2
    """Step (published code: set per data set; Aioli's authors ran it with 0.2)."""
    window: int = 3
    """Decisions whose losses count (published: 3)."""
    graph: Literal["singles", "pairs"] = "singles"
    """Which trainings the graph is learned from."""
    share: float = 0.02
    """Tokens of each of these trainings, as a share of the stage's budget (published: set per data set)."""
    start: Start = "current"
    """What they train."""
    every: int | None = None
    """Optimizer steps between decisions; None: a twentieth of the run (published: 5 to 10 rounds a run)."""

    @property
    def signals(self) -> frozenset[Signal]:
        """Held-out losses."""
        return frozenset({"held_out"})

    def init(self, runner: TrialRunner, total_steps: int) -> tuple[State, MixerSegment]:
        """Learn the graph; see `OnlineMixer`."""
        graph = self.learn_graph(runner)
        state = {
            "domains": list(runner.problem.domains),
            "every": interval(self.every, total_steps),
            "graph": listed(graph),
            "losses": [],
            "weights": listed(exponentiated(uniform(len(graph)), self.eta * graph.sum(axis=1))),
        }
        return state, segment(state)

    def update(self, state: State, seen: Observation) -> tuple[State, MixerSegment]:
        """Multiplicative weights; see `OnlineMixer`."""
        assert seen.held_out is not None
        losses = [*state["losses"], listed(seen.held_out)][-self.window :]
        scores = self.eta * np.array(state["graph"]) @ np.sum(losses, axis=0)
        new = {**state, "losses": losses, "weights": listed(exponentiated(uniform(len(scores)), scores))}
        return new, segment(new)

    def learn_graph(self, runner: TrialRunner) -> FloatArray:
        """A, (D, D): row i says what training on domain i does for each domain."""
        domains = runner.problem.domains
        num, eye = len(domains), np.eye(len(domains))
        pairs = list(combinations(range(num), 2)) if self.graph == "pairs" else []
        shares = [*eye, *((eye[i] + eye[j]) / 2 for i, j in pairs)]
        proxy = TrialModel(tokens=max(1, round(self.share * runner.problem.budget_tokens)), start=self.start)
        trials = runner.train([Mixture(domains, s) for s in shares], proxy, label="skills")
        drops = trials.baseline - trials.losses
        if self.graph == "singles":
            return np.asarray(np.maximum(drops / trials.baseline, 0.0))
        graph = eye.copy()
        for (i, j), both in zip(pairs, drops[num:], strict=True):
            for parent, child in ((i, j), (j, i)):
                if (alone := drops[child, child]) > 0:
                    graph[parent, child] = max(0.0, (both[child] - alone) / alone)
        return graph
