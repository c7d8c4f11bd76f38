"""Merging instead of training: OP-Mix's search, then its adapters are added to the model (the paper's figure 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opmix.methods.op_mix import OpMix


@dataclass(frozen=True, kw_only=True)
class LoraMerge(OpMix):
    """The decision is OP-Mix's; the engine then merges the probes at it, and trains nothing.

    A fair trial of it gives the probes more steps than a search needs: `stage: {probes: {steps: ...}}`.
    """

    merges: ClassVar[bool] = True
