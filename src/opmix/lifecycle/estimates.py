"""What work will cost before it is done: tokens and FLOPs of searches and stages. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from opmix.compute.budget import sequences_per_step, world_size
from opmix.compute.flops import ModelShape
from opmix.config import SearchConfig
from opmix.methods.adaptive import Closeness, Looks
from opmix.methods.op_mix import OpMix
from opmix.mixing.design import coordinates_of
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem


@dataclass(frozen=True, kw_only=True)
class SearchEstimate:
    """Amounts of one search."""

    num_probes: int
    num_points: int
    probe_tokens: int
    proxy_tokens: int

    def flops(self, shape: ModelShape, sequence_length: int) -> dict[str, float]:
        """By purpose; adapters' own weights are left out (a few percent)."""
        return {
            "probes": self.probe_tokens * shape.train_lora(sequence_length, 0),
            "proxies": self.proxy_tokens * shape.forward(sequence_length),
        }


def method_of(config: SearchConfig) -> OpMix:
    """The method with the configuration's settings."""
    return OpMix(
        share=config.probes.share, joint=config.probes.joint, num_points=config.proxies.count, huber_delta=config.huber_delta,
        verify=config.decision.verify, specialised=config.proxies.specialised,
        arbiter=config.decision.arbiter, looks=looks_of(config),
    )  # fmt: skip


def looks_of(config: SearchConfig) -> Looks | None:
    """When probes are looked at while they train; None: at their end only."""
    probes = config.probes
    if not config.adaptive:
        return None
    looks = Looks(
        steps=probes.steps, first=probes.first_look, sequences=config.proxies.eval_sequences, tolerance=probes.tolerance
    )
    return looks if looks.parts else None  # too short to be looked at before their end


def eval_sequences(config: SearchConfig, old: Mixture | None) -> list[int]:
    """Held-out sequences of each domain: old ones that count as one coordinate share twice a domain's number.

    So the cost of a search follows the number of *new* domains, however many the model has learned before.
    """
    wanted, names = config.proxies.eval_sequences, tuple(config.domains)
    coordinates = coordinates_of(names, old, config.new_domains)
    if coordinates.names == coordinates.domains:
        return [wanted] * len(names)
    shared = [n for n in names if n not in coordinates.names]
    return [min(wanted, max(2, 2 * wanted // len(shared))) if n in shared else wanted for n in names]


def estimate_search(config: SearchConfig, old: Mixture | None) -> SearchEstimate:
    """Tokens of one search, of an adaptive one at most; the confirming probe, which only some searches train, is left out."""
    names, length = tuple(config.domains), config.sequence_length
    decision = DecisionProblem(
        domains=names, old=old, budget_tokens=config.budget.tokens, available_tokens=dict.fromkeys(names, 1), seed=config.seed,
        new=config.new_domains,
    )  # fmt: skip
    design = method_of(config).design(decision)
    rows = config.probes.steps * sequences_per_step(config.trainer, world_size())
    return SearchEstimate(
        num_probes=len(design.probes.probes), num_points=len(design.points), probe_tokens=len(design.probes.probes) * rows * length,
        proxy_tokens=((len(design.points) + 1) * sum(eval_sequences(config, old)) + early_sequences(config, old, decision)) * length,
    )  # fmt: skip


def early_sequences(config: SearchConfig, old: Mixture | None, decision: DecisionProblem) -> int:
    """Sequences that an adaptive search evaluates before its last look, at most, times the models it evaluates them with."""
    method, looks = method_of(config), looks_of(config)
    if looks is None:
        return 0
    # At its dearest the second look doubles everything, the sequences first, and later ones are as close.
    path = [Closeness(doubled) for doubled in range(looks.doublings + 1)]
    while _closer_points(method, decision, more := replace(path[-1], points=path[-1].points + 1)):
        path.append(more)
    few = len(looks.parts) < 2
    dearest = path[: len(looks.parts)] if few else [path[0], *path, *path[-1:] * (len(looks.parts) - 2)]
    total = 0
    for close in dearest:
        models = len(method.design(decision, method.few_points(decision, close.points)).points) + 1
        thinning = close.thinning(looks)
        total += models * sum(math.ceil(n / max(1, min(thinning, n // 4))) for n in eval_sequences(config, old))
    return total


def _closer_points(method: OpMix, decision: DecisionProblem, close: Closeness) -> bool:
    """Whether the last doubling of the points added any."""
    counts = [method.few_points(decision, level) for level in (close.points - 1, close.points)]
    return counts[1] > counts[0]
