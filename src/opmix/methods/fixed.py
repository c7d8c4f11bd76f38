"""Rules that need no search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix.errors import ConfigError
from opmix.methods.swarm.runs import check_settings
from opmix.mixing.design import new_domains
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem, Proposal
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True)
class Uniform:
    """The same share of every domain."""

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        return Proposal(mixture=Mixture.uniform(context.problem.domains))


@dataclass(frozen=True)
class Size:
    """Shares proportional to the tokens that are there, as if all data lay in one heap."""

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem = context.problem
        return Proposal(mixture=problem.by_size, evidence={"available_tokens": dict(problem.available_tokens)})


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Shares proportional to size ** (1 / T): 1 is proportional to size, large T uniform.

    References:
        Arivazhagan et al., arXiv 1907.05019, section 4.2: T = 5 for 103 languages. Others: XLM-R's exponent 0.3 (T = 3.3, arXiv
        1911.02116), mT5's too (arXiv 2010.11934).
    """

    temperature: float = 5.0

    def __post_init__(self) -> None:
        check_settings(self, positive=("temperature",))

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        sizes = context.problem.by_size
        shares = Mixture.normalised({d: p ** (1 / self.temperature) for d, p in sizes.items()})
        return Proposal(mixture=shares, evidence={"temperature": self.temperature, "sizes": dict(sizes)})


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A fixed share of the old mixture, the rest uniform over the new domains; without new ones, the current mixture.

    References:
        Ibrahim et al., arXiv 2403.08763: 1 to 50 % replay, 5 % for a weak shift, 25 % for a strong one. The tenth is common practice
        between; how several new domains share the rest is an assumption.
    """

    share: float = 0.1
    """Of the old mixture."""

    def __post_init__(self) -> None:
        if not (isinstance(self.share, int | float) and 0 <= self.share <= 1):
            raise ConfigError(f"share: {self.share!r}; expected a number in [0, 1]")

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        return Proposal(mixture=_replayed(context.problem, self.share), evidence={"share": self.share})


@dataclass(frozen=True)
class Sequential:
    """Only the new domains, uniformly (continual fine-tuning on one thing after the other); without new ones, the current mixture."""

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        return Proposal(mixture=_replayed(context.problem, 0.0))


@dataclass(frozen=True, kw_only=True)
class UniMax:
    """As near to uniform as no domain being read more than `epochs` times allows.

    Domains are filled from the smallest: each gets an even part of what is left of the budget, or all that its cap allows. Where even
    all caps together are below the budget, every domain is read equally often, so shares are by size.

    References:
        Chung et al., "UniMax", arXiv 2304.09151, algorithm 1.
    """

    epochs: float = 4.0
    """Of any domain. Paper: 1, 5 and 10; four repetitions are about as good as new text (arXiv 2305.16264)."""

    def __post_init__(self) -> None:
        check_settings(self, positive=("epochs",))

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem, left = context.problem, float(context.problem.budget_tokens)
        sizes = {d: float(problem.available_tokens[d]) for d in problem.domains}
        given: dict[str, float] = {}
        for domain in sorted(sizes, key=lambda d: sizes[d]):
            given[domain] = min(left / (len(sizes) - len(given)), self.epochs * sizes[domain])
            left -= given[domain]
        mixture = Mixture.normalised({d: given[d] for d in problem.domains})
        return Proposal(
            mixture=mixture, evidence={"epochs": mixture.epochs(problem.budget_tokens, problem.available_tokens)}
        )


def _replayed(problem: DecisionProblem, share: float) -> Mixture:
    new = new_domains(problem.domains, problem.old) if problem.new is None else problem.new
    if problem.old is None or not new:
        return problem.current
    added = np.array([(1 - share) / len(new) if d in new else 0.0 for d in problem.domains])
    return Mixture(problem.domains, share * problem.current.weights + added)
