"""Rules that need no search."""

from __future__ import annotations

from dataclasses import dataclass

from opmix.methods.base import Proposal
from opmix.methods.bench import Bench
from opmix.mixing.mixture import Mixture


@dataclass(frozen=True)
class Uniform:
    """The same share of every domain."""

    def propose(self, context: Bench) -> Proposal:
        """See `MixingMethod`."""
        return Proposal(mixture=Mixture.uniform(context.stage.domains))
