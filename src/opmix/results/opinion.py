"""A second opinion beside a law's mixture; `second_opinion` in `mixture.json`, where one was formed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

KEY = "second_opinion"
SLACK = 0.02
"""Share by which a domain may lie outside the law's interval without being named."""
SMALL = 0.05
"""Total variation from the mixture in use below which a mixture has no direction."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What mixtures of the probes' predictions would choose: `sum_k w_k P_k`, token by token."""

    mixture: Mapping[str, float]
    reference: Mapping[str, float]
    """The mixture in use."""
    gain: float | None
    """Nats by which the mixed predictions are better than those of the probe on the mixture in use; an ensemble's, not a training's."""
    cosine: float | None
    """Between its way from the mixture in use and the law's; None: one of them stays where it is."""
    outside: tuple[str, ...]
    """Domains whose share lies outside the law's interval."""

    @classmethod
    def of(
        cls,
        *,
        mixture: Mapping[str, float],
        reference: Mapping[str, float],
        proposal: Mapping[str, float],
        interval: Mapping[str, tuple[float, float]],
        gain: float | None,
    ) -> Self:
        """Compare with the law's own mixture and its interval."""
        names = list(mixture)
        ours, theirs = (np.array([m[n] - reference[n] for n in names]) for m in (mixture, proposal))
        still = min(np.abs(ours).sum(), np.abs(theirs).sum()) / 2 < SMALL
        outside = [n for n, (low, high) in interval.items() if not low - SLACK <= mixture[n] <= high + SLACK]
        return cls(
            mixture=mixture,
            reference=reference,
            gain=gain,
            cosine=None if still else float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))),
            outside=tuple(outside),
        )

    @property
    def verdict(self) -> str:
        """How far it agrees with the law."""
        if self.cosine is not None and self.cosine <= 0:
            return "disagrees: it changes shares in another direction"
        way = "one of the two stays where it is" if self.cosine is None else "it changes shares in the same direction"
        if not self.outside:
            return f"agrees: {way}, inside the law's interval"
        more = f" and {len(self.outside) - _SHOWN} more" if len(self.outside) > _SHOWN else ""
        return f"disagrees in part: {way}, outside the law's interval in {', '.join(self.outside[:_SHOWN])}{more}"

    def sentence(self) -> str:
        """For the terminal and the report."""
        top = sorted(self.mixture.items(), key=lambda item: -item[1])[:_SHOWN]
        shares = ", ".join(f"{name} {share:.2f}" for name, share in top)
        more = ", ..." if len(self.mixture) > _SHOWN else ""
        how = "from the probes' own predictions, mixed; nothing was trained for it and no limit heeded"
        return f"second opinion ({how}): {shares}{more}; {self.verdict}"

    def json(self) -> dict[str, Any]:
        """What the file holds."""
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def read(cls, evidence: Mapping[str, Any]) -> Self | None:
        """Return that of a document's evidence; None: none was formed, or a file that somebody else wrote otherwise."""
        try:
            found = {k: v for k, v in evidence[KEY].items() if k != "verdict"}
            return cls(**{**found, "outside": tuple(found["outside"])})
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
