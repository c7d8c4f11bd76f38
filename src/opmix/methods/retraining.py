"""Full retraining: forget the model, train again on everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner


@dataclass(frozen=True)
class FullRetraining:
    """From where the life starts, on all domains on offer, for the tokens of all stages so far (the paper's figure 9).

    The paper does not say in what shares; here they are `mixture`.
    """

    mixture: Literal["uniform", "size"] = "uniform"

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        problem = context.problem
        return Proposal(mixture=problem.by_size if self.mixture == "size" else Mixture.uniform(problem.domains))
