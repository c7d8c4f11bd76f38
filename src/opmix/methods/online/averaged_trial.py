"""What DoReMi and DoGE share: one proxy run whose mixture moves, and the average of what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem, Proposal
from opmix.protocols.online_mixer import AveragedTrial, MixerTrialRunner, OnlineMixer
from opmix.protocols.trials import Start, TrialModel


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """What the proxy run trains, and for how long."""

    share: float = 0.1
    """Tokens of the proxy run, as a share of the stage's budget."""
    start: Start = "current"
    """`scratch`, with a smaller `architecture`, is the papers': they choose for pretraining. `current` also serves later stages."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """See `TrialModel`."""

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ConfigError(f"share is {self.share:g}; expected a positive share of the stage's tokens")

    def proxy(self, problem: DecisionProblem) -> TrialModel:
        """The proxy of a stage."""
        tokens = max(1, round(self.share * problem.budget_tokens))
        return TrialModel(tokens=tokens, start=self.start, architecture=dict(self.architecture))


def average(run: AveragedTrial) -> Mixture:
    """Mean mixture of a run, every step counting the same.

    Examples:
        >>> from opmix.protocols.online_mixer import MixerSegment
        >>> segments = (MixerSegment(Mixture.of({"a": 1.0, "b": 0.0}), 1), MixerSegment(Mixture.of({"a": 0.0, "b": 1.0}), 3))
        >>> average(AveragedTrial(segments=segments, state={}, losses=np.zeros(2)))
        Mixture(a=0.25, b=0.75)
    """
    steps = np.array([segment.steps for segment in run.segments], dtype=np.float64)
    rows = np.array([segment.mixture.weights for segment in run.segments])
    return Mixture(run.segments[0].mixture.names, steps @ rows / steps.sum())


def proposal(
    context: MixerTrialRunner, mixer: OnlineMixer, proxy: TrialModel, label: str, reference: Mixture | None
) -> Proposal:
    """The average mixture of one watched run, with its course as evidence."""
    run = context.watch(mixer, proxy, label=label, reference=reference)
    course = [{"steps": s.steps, "mixture": dict(s.mixture)} for s in run.segments]
    evidence = {"course": course, "losses": dict(zip(context.problem.domains, map(float, run.losses), strict=False))}
    if reference is not None:
        evidence["reference"] = dict(reference)
    return Proposal(mixture=average(run), evidence=evidence)
