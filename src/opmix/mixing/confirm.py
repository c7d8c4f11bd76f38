"""What a law says, held against probes that were really trained: the last word of a decision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opmix.mixing.decided import Decision
from opmix.mixing.decision import DecisionSettings, Verdict, unsure
from opmix.mixing.estimates import Estimate
from opmix.mixing.mixture import Mixture
from opmix.mixing.paired import gain_probability
from opmix.mixing.posterior import percentiles

_DRAWS = 10_000


def confirm(
    verdict: Verdict,
    direct_gain: float,
    direct_error: float,
    mixture: Mixture | None = None,
    *,
    tries: int = 1,
    together: Estimate | None = None,
    spread: float = 0.0,
) -> Verdict:
    """Let a direct measurement decide, alone or together with the law: move where a gain is as sure as asked for, else keep.

    Args:
        verdict: What the law says.
        direct_gain: Objective of a probe trained on the reference minus that of one trained on the mixture, nats.
        direct_error: Its standard error; NaN: unknown, which confirms no move.
        mixture: What the probe was trained on; None: the optimum.
        tries: Candidates of which this one was the best: the chance that it is so by luck is that many times as large (Bonferroni); 0: all
            broke a limit.
        together: Gain in the stage by law and measurement; None: the measurement alone decides.
        spread: Standard deviation of the logarithm of what a foretold nat is worth in the stage; it widens the interval of `together`.
    """
    rule, decision = verdict.decision_settings, verdict.decision
    if not tries:
        return _kept(verdict, "but every trained candidate breaks a limit on losses")
    judged = together or Estimate(direct_gain, direct_error)
    sure = surely(judged.gain, judged.for_sign, rule, tries=tries)
    measured = _measured(direct_gain, direct_error, together, sure) + (
        f", the best of {tries} tried" if tries > 1 else ""
    )
    direct = replace(decision, direct_gain=direct_gain, direct_error=direct_error)
    if together is not None:
        interval = stage_interval(together, spread, rule)
        direct = replace(direct, joint_gain=together.gain, joint_interval=interval, joint_probability=sure)
    if sure >= rule.asked:
        chosen = verdict.optimum.mixture if mixture is None else mixture
        reason = f"move: {_numbers(decision)}; {measured}{unsure(sure)}"
        return replace(verdict, mixture=chosen, decision=replace(direct, action="move", reason=reason))
    joined = "but" if decision.action == "move" else "and"
    return _kept(replace(verdict, decision=direct), f"{joined} {measured}")


def surely(gain: float, error: float, rule: DecisionSettings, *, tries: int = 1) -> float:
    """Probability that the best of `tries` gains is one, in [0, 1]; NaN where the error is unknown."""
    return float(np.clip(1 - tries * (1 - gain_probability(gain, error, rule.min_gain)), 0.0, 1.0))


def _measured(gain: float, error: float, together: Estimate | None, sure: float) -> str:
    known = f"+- {error:.4f} nats"
    if not np.isfinite(error):
        known = "nats, of unknown error: a domain has fewer than two held-out sequences"
    said = f"one probe trained on each measured {gain:+.4f} {known}"
    if not np.isfinite(sure):
        return said
    if together is None:
        return f"{said} (probability {sure:.0%})"
    return f"{said}; together {together.gain:+.4f} +- {together.error:.4f} nats in the stage (probability {sure:.0%})"


def stage_interval(together: Estimate, spread: float, rule: DecisionSettings) -> tuple[float, float]:
    """Of the gain in the stage, nats, at the rule's level: its error, and what a nat between probes is worth there."""
    rng = np.random.default_rng([rule.seed, 2])
    gains = together.gain + together.error * rng.standard_normal(_DRAWS)
    return percentiles(gains * np.exp(spread * rng.standard_normal(_DRAWS)), rule.interval_level)


def _numbers(decision: Decision) -> str:
    """What the law says, out of its reason."""
    return decision.reason.partition(": ")[2].partition(", below the ")[0]


def _kept(verdict: Verdict, why: str) -> Verdict:
    """The reference instead of the optimum."""
    decision = verdict.decision
    kept = next(a.mixture for a in verdict.alternatives if a.name == decision.reference)
    reason = f"keep the {decision.reference} mixture: {_numbers(decision)}, {why}"
    return replace(verdict, mixture=kept, decision=replace(decision, action="keep", reason=reason))
