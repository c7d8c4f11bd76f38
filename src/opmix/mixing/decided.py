"""What was decided, apart from how: files that keep a decision are read without the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Move to the optimum or keep the reference, and why."""

    action: Literal["move", "keep"]
    reason: str
    reference: str
    gain: float
    gain_interval: tuple[float, float]
    probability: float
    confidence: float
    noise: float
    """Standard deviation, in nats, that law misfit and interference add to every predicted difference."""
    direct_gain: float | None = None
    """Gain of a probe really trained on the mixture over one trained on the reference, nats between probes; None: not trained."""
    direct_error: float | None = None
    """Standard error of `direct_gain` over held-out sequences, and orders of the data where that is known."""
    joint_gain: float | None = None
    """Gain in the stage by law and probes together, nats; None: only one of them has a say."""
    joint_interval: tuple[float, float] | None = None
    joint_probability: float | None = None
    """That there is a gain, counting how many candidates were tried."""

    @property
    def known_gain(self) -> tuple[float, str]:
        """The gain by the best evidence there is, nats, and whether that is foretold, measured or both."""
        if self.joint_gain is not None:
            return self.joint_gain, "foretold and measured"
        return (self.gain, "foretold") if self.direct_gain is None else (self.direct_gain, "measured")

    @property
    def known_probability(self) -> float:
        """That there is a gain: by law and probes together where both have a say, else by the law."""
        return self.probability if self.joint_probability is None else self.joint_probability
