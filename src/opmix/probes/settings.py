"""How a probe is trained. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LITTLE = 0.5
"""Share of the weights that probes reach; where it is less, the user is told."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How every probe of a search is trained."""

    steps: int
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    learning_rate_multiplier: float = 2.0

    def of_a_run(self) -> dict[str, Any]:
        """What a trained probe depends on."""
        return dict(vars(self))


def reach_notes(share: float) -> list[str]:
    """What to know of probes that reach a `share` of the weights, see `models.reached_share`; nothing where it is most of them."""
    if share >= _LITTLE:
        return []
    return [
        f"adapters reach {share:.0%} of the weights; embeddings, the output head and fused experts stay as they are in probes, so what "
        "they would learn is missing from the simulation: name modules to train in full (`probes.modules_to_save`)"
    ]
