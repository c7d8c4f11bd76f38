"""What a search shows of single domains: one that helps no evaluated set, near-copies, and how much of a new one harms no old one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import objective_values
from opmix.mixing.problem import Coordinates
from opmix.protocols.law import MixingLaw
from opmix.protocols.mixing_method import LawProposal

ALIKE = 0.35
"""Two domains are near-copies where what their probes change differs by less than this share of it: in the thirteen cells of the race
copies of six tenths lie at 0.06 to 0.46 (full probes of 32 steps; 0.15 to 0.6 of 8), other pairs above 0.39."""


def findings(proposal: LawProposal) -> list[str]:
    """A sentence for each."""
    changes = probe_changes(proposal)
    weights = proposal.verdict.settings.weights(len(proposal.table.metrics))
    told = [
        f"{domain} helps none of the evaluated sets that count: its own probe is worse than the joint one on each, by "
        f"{float((change @ weights) / weights.sum()):.3f} nats in the mean; leave it out, or look at its text"
        for domain, change in changes.items()
        if np.all(change[weights > 0] > 0)
    ]
    told += [
        f"{a} and {b} are nearly the same text to the model: their probes change every evaluated set alike (they "
        f"differ by {apart:.0%} of what they change); one of them may do"
        for a, b, apart in near_copies(changes)
    ]
    return told + beyond_what_was_seen(proposal) + critical_shares(proposal)


def beyond_what_was_seen(proposal: LawProposal) -> list[str]:
    """Where a law in effective tokens foretells a larger gain than its probes differ by; others are cut there (`LawFit.most`)."""
    scale = proposal.fit.settings.get("discrepancy", {}).get("factor")
    if scale is None:
        return []
    seen = float(np.ptp(objective_values(proposal.table.losses, proposal.verdict.settings)))
    told = proposal.verdict.decision.gain / scale
    if told <= seen:
        return []
    return [
        f"the law foretells a gain of {told:.3f} nats at the scale of the probes, which differ by {seen:.3f} among "
        "themselves: it lies beyond what was seen, so trust what was measured rather than this number"
    ]


def probe_changes(proposal: LawProposal) -> dict[str, FloatArray]:
    """By domain, losses of its own probe less those of the joint one, (E,) nats; nothing where no probe was trained jointly."""
    table, coordinates = proposal.table, proposal.verdict.coordinates
    rows = {point: table.losses[i] for i, point in enumerate(table.points)}
    collapsed = coordinates.names != coordinates.domains
    joint = rows.get("probe joint" if collapsed else "probe old")
    if joint is None:
        return {}
    own = coordinates.names[1:] if collapsed else coordinates.names
    return {d: np.asarray(rows[f"probe {d}"] - joint) for d in own if f"probe {d}" in rows}


def near_copies(changes: dict[str, FloatArray]) -> list[tuple[str, str, float]]:
    """Pairs whose probes change all evaluated sets alike, and how far they are apart, as a share of what they change."""
    names, found = list(changes), []
    for i, a in enumerate(names):
        for b in names[:i]:
            size = max(np.abs(changes[a]).mean(), np.abs(changes[b]).mean(), 1e-12)
            apart = float(np.abs(changes[a] - changes[b]).mean() / size)
            if apart < ALIKE:
                found.append((b, a, apart))
    return found


def critical_shares(proposal: LawProposal) -> list[str]:
    """For every new domain, the largest share that does not raise the old domains' losses, as the law has it."""
    coordinates, law = proposal.verdict.coordinates, proposal.fit.law
    if coordinates.names == coordinates.domains or not proposal.baseline:
        return []
    told = []
    for index, domain in enumerate(coordinates.names[1:], 1):
        share = critical_share(law, coordinates, index, proposal.baseline, law.metrics)
        if share is None:
            sentence = "any of it is foretold to raise"
        elif share >= 1:
            sentence = "however much of it is mixed in, it is not foretold to raise"
        else:
            sentence = f"up to {share:.2f} of the tokens it is not foretold to raise"
        told.append(f"how much {domain} the old domains bear: {sentence} their loss (mean by their old shares)")
    return told


def critical_share(
    law: MixingLaw, coordinates: Coordinates, index: int, baseline: Mapping[str, float], metrics: Sequence[str]
) -> float | None:
    """Largest share of a coordinate beside the old mixture at which old losses are not above `baseline`; None: none."""
    old = coordinates.E[0]
    by_old = np.array([old[coordinates.domains.index(m)] if m in coordinates.domains else 0.0 for m in metrics])
    now = float(np.array([baseline[m] for m in metrics]) @ by_old)
    shares = np.linspace(0.0, 1.0, 101)
    mixtures = (1 - shares)[:, None] * old + shares[:, None] * coordinates.E[index]
    fine = np.flatnonzero(law.predict(mixtures) @ by_old <= now)
    return float(shares[fine[-1]]) if len(fine) else None
