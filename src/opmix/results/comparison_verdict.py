"""What a comparison says to do, in one sentence: which method, by how much, how sure, at what cost. Imports no torch.

Terminal, notebook, page and the list of runs say these words. Nothing of it is in `compare.json`: it follows from what is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from opmix.results.comparison import CompareFile, ContenderRow

LEVEL = 0.9
"""Of the interval of a difference between two methods."""
_SAME_COST = 0.005
"""Share by which two costs may differ and still be called the same."""


@dataclass(frozen=True, kw_only=True)
class PairedGain:
    """How much lower one method's mean test loss is than another's, over the seeds that both have lived."""

    mean: float
    """Nats per token."""
    interval: tuple[float, float] | None
    """Student's, of `LEVEL`; None: fewer than two seeds, so nothing is known of it."""
    seeds: int

    @property
    def sure(self) -> bool:
        """The interval lies above zero."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def level(self) -> bool:
        """There is an interval, and it does not lie above zero."""
        return self.interval is not None and self.interval[0] <= 0


def paired_gain(content: CompareFile, better: str, other: str) -> PairedGain:
    """Gain of `better` over `other`, paired by seed; NaN over no common seed."""
    ours, theirs = content.entrants[better].seeds, content.entrants[other].seeds
    gains = [theirs[seed].mean_loss - ours[seed].mean_loss for seed in ours if seed in theirs]
    if len(gains) < 2:
        return PairedGain(mean=fmean(gains) if gains else math.nan, interval=None, seeds=len(gains))
    from scipy.special import stdtrit

    reach = float(stdtrit(len(gains) - 1, (1 + LEVEL) / 2)) * stdev(gains) / math.sqrt(len(gains))
    mean = fmean(gains)
    return PairedGain(mean=mean, interval=(mean - reach, mean + reach), seeds=len(gains))


def comparison_verdict(content: CompareFile) -> str:
    """The sentence: what to use, a colon, and why.

    The method with the lowest mean test loss is to be used if it is surely better than the next, or if one seed leaves that open;
    of several that are level over their seeds, the cheapest. A method whose loss is not finite is never named.
    """
    rows = [row for row in content.table if row.mean_loss.mean is not None]
    if not rows:
        return "Use none of them: no method ended with a finite test loss."
    best = rows[0]
    loss = f"{best.mean_loss.known:.4f} nats per token"
    if len(rows) == 1:
        also = "no other ended with a finite test loss" if len(content.table) > 1 else "no other was run"
        return f"Use {best.entrant}: {also}. Its mean test loss is {loss}."
    level = [row for row in rows[1:] if paired_gain(content, best.entrant, row.entrant).level]
    use = min([best, *level], key=_cost)
    if use is not best:
        gain = _gain(content, best, use)
        return (
            f"Use {use.entrant}: of {_counted(len(level) + 1)} methods that the seeds cannot tell apart it costs "
            f"least. The lowest mean test loss is {best.entrant}'s, {loss}, {gain}, {_beside(best, use)}."
        )
    after = level[0] if level else rows[1]
    gain = f"{_gain(content, best, after)}, {_beside(best, after)}"
    if level:
        return (
            f"Use {best.entrant}: its mean test loss, {loss}, is the lowest, though not surely, and none that is level "
            f"with it costs less. It is {gain}."
        )
    found = paired_gain(content, best.entrant, after.entrant)
    silent = "one seed" if found.seeds else "runs of different seeds"
    doubt = "" if found.sure else f" How sure that is, {silent} cannot say."
    return f"Use {best.entrant}: its mean test loss, {loss}, is the lowest, {gain}.{doubt}"


def _gain(content: CompareFile, best: ContenderRow, other: ContenderRow) -> str:
    gain = paired_gain(content, best.entrant, other.entrant)
    if not gain.seeds:
        return f"though it shares no seed with {other.entrant}"
    way, worth = ("below", "lower") if gain.mean >= 0 else ("above", "higher")
    said = f"{abs(gain.mean):.4f} {way} {other.entrant}'s ({abs(1 - math.exp(-gain.mean)):.1%} {worth} perplexity"
    if gain.interval is None:
        return f"{said})"
    low, high = gain.interval
    return f"{said}; {LEVEL:.0%} interval of the gain {low:.4f} to {high:.4f} over {gain.seeds} seeds)"


def _cost(row: ContenderRow) -> float:
    """FLOPs that differ between methods: the stages they share were trained once."""
    return row.search_flops.known + row.training_flops.known


def _beside(best: ContenderRow, other: ContenderRow) -> str:
    """What `best` cost, as a multiple of the other."""
    ours, theirs = _cost(best), _cost(other)
    if not theirs > 0:
        return f"for {ours:.1e} FLOPs where {other.entrant} takes none" if ours > 0 else "both without training"
    ratio = ours / theirs
    return "at the same cost" if abs(ratio - 1) < _SAME_COST else f"at {ratio:.2g} times its FLOPs"


def _counted(number: int) -> str:
    words: Sequence[str] = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number - 2] if number - 2 < len(words) else str(number)
