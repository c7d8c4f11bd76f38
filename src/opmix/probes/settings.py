"""How a probe is trained. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
