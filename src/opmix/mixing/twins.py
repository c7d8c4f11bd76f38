"""Does the loss depend on the mixture alone? Twins are points with different weights that stand for the same mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix.mixing.design import StageDesign
from opmix.mixing.mixture import FloatArray
from opmix.mixing.table import ProxyTable


@dataclass(frozen=True, kw_only=True)
class Twin:
    """One mixture simulated in two ways."""

    joint: int
    averaged: int
    difference: FloatArray  # (E,) loss of the average minus loss of the jointly trained probe, nats
    standard_error: FloatArray  # (E,) of the paired difference
    explained: FloatArray  # (E,) what the law's interference term says of it


@dataclass(frozen=True, kw_only=True)
class InterferenceCheck:
    """What the twins of a search say."""

    twins: tuple[Twin, ...]
    corrected: bool
    """Whether the law carried an interference term."""
    variation: float
    """How much interference varies between the points that the law compares, as a share of the twins' own."""

    @property
    def left(self) -> float:
        """Mean-loss difference of the twins that nothing explains, nats."""
        if not self.twins:
            return 0.0
        return float(np.sqrt(np.mean([np.mean(t.difference - t.explained) ** 2 for t in self.twins])))

    @property
    def structural(self) -> float:
        """Standard deviation that unexplained interference adds to a predicted difference, nats.

        What all points share cancels in a difference; what varies between them does not.
        """
        return self.left * self.variation

    @property
    def worst(self) -> float:
        """Largest raw difference of any evaluation set, nats."""
        return max((float(np.abs(t.difference).max()) for t in self.twins), default=0.0)

    def verdict(self, spread: float) -> str:
        """A plain sentence; `spread` is how much the mean loss differs between the proxies, nats."""
        if not self.twins:
            return "Not checked: the design has no two ways to reach one mixture (probes.joint is off)."
        mean = float(np.mean([t.difference.mean() for t in self.twins]))
        share = abs(mean) / spread if spread > 0 else float("inf")
        side = "worse" if mean > 0 else "better"
        start = (
            "How good the shortcut is: mixtures are tried by averaging what short trainings on one domain each have "
            f"learned; that came out {abs(mean):.4f} nats {side} than a short training on the mixture itself"
        )
        size = f"{share:.0%} of what mixtures differ by"
        left = f"corrected to {self.left:.4f}" if self.corrected else "not corrected"
        return f"{start} ({size}; {left}), and every interval is wider for it by {self.structural:.4f} nats of noise."

    def json(self, design: StageDesign, metrics: tuple[str, ...], spread: float) -> dict[str, Any]:
        """For `mixture.json`."""
        mixtures = design.mixtures
        return {
            "available": bool(self.twins),
            "twins": [
                {
                    "mixture": dict(zip(design.probes.domains, mixtures[t.joint], strict=True)),
                    "a": design.names[t.joint],
                    "b": design.names[t.averaged],
                    "difference": dict(zip(metrics, t.difference, strict=True)),
                    "standard_error": dict(zip(metrics, t.standard_error, strict=True)),
                    "explained": dict(zip(metrics, t.explained, strict=True)),
                }
                for t in self.twins
            ],
            "worst": self.worst,
            "left": self.left,
            "structural": self.structural,
            "corrected": self.corrected,
            "verdict": self.verdict(spread),
        }


def check_twins(
    design: StageDesign, table: ProxyTable, interference: FloatArray | None, paired_errors: FloatArray
) -> InterferenceCheck:
    """Compare every pair of twins.

    Args:
        design: With its twins.
        table: Losses and interference of all points.
        interference: What the law says a unit of it costs, (E,) nats; None: it has no such term.
        paired_errors: Standard error of each twin's difference, (number of twins, E).
    """
    losses, v, corrected = table.losses, table.interference, interference is not None
    twins = tuple(
        Twin(
            joint=a,
            averaged=b,
            difference=losses[b] - losses[a],
            standard_error=error,
            explained=interference * (v[b] - v[a])
            if interference is not None and v is not None
            else np.zeros(losses.shape[1]),
        )
        for (a, b), error in zip(design.twins, paired_errors, strict=True)
    )
    variation = 0.0
    if v is not None and twins:
        scale = float(np.mean([abs(v[t.averaged] - v[t.joint]) for t in twins]))
        variation = float(v[table.fitted_rows].std() / scale) if scale > 0 else 0.0
    return InterferenceCheck(twins=twins, corrected=corrected, variation=variation)
