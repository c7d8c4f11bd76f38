"""The cost of a search before it is run: tokens and FLOPs. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from opmix.compute.budget import sequences_per_step
from opmix.compute.cost import Cost
from opmix.compute.flops import ModelShape
from opmix.config import SearchConfig
from opmix.methods.op_mix import method_of
from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.design import coordinates_of
from opmix.mixing.mixture import Mixture
from opmix.probes.settings import CONFIRMING
from opmix.protocols.mixing_method import FULL, DecisionProblem, Fidelity

if TYPE_CHECKING:  # torch is imported where it is used
    from opmix.training.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class DomainSize:
    """Rows of one domain, in tokens."""

    available: int = 1
    """Supervised tokens to train on."""
    row: float
    """Mean tokens of a training row."""
    supervised: float
    """Mean supervised tokens of a training row; those of text are all supervised."""
    held_out: int | None = None
    """Held-out rows that there are; None: as many as are asked for."""
    held_out_row: int
    """Tokens of a held-out row, padding included."""


@dataclass(frozen=True, kw_only=True)
class SearchEstimate:
    """Amounts of one search; of an adaptive one at most."""

    num_probes: int
    num_points: int
    probe_tokens: int
    """Tokens of the rows that all probes read together; what self-distillation samples comes on top."""
    evaluated: Mapping[int, int]
    """By row length: tokens that proxies and the current model are evaluated on, padding included."""
    stage_tokens: int
    """Tokens of the rows that the stage itself reads."""
    confirming: SearchEstimate | None = None
    """The probe that tests a move, on top: only searches that would move train it."""

    @property
    def proxy_tokens(self) -> int:
        """Tokens that proxies and the current model are evaluated on."""
        return sum(self.evaluated.values())

    def cost(
        self,
        shape: ModelShape,
        sequence_length: int,
        *,
        adapter_parameters: int | None = 0,
        objective: Objective | None = None,
    ) -> Cost:
        """Return the cost without the confirming probe.

        Args:
            shape: The model.
            sequence_length: Tokens a training row attends over.
            adapter_parameters: Weights of one probe's adapter; 0: not known, which leaves a few percent out; None: the whole model is
                trained.
            objective: None: cross-entropy.
        """
        each = (
            shape.train(sequence_length)
            if adapter_parameters is None
            else shape.train_lora(sequence_length, adapter_parameters)
        )
        probes = self.probe_tokens * each
        if objective is not None:
            probes = objective.flops(
                shape, row_tokens=self.probe_tokens, length=sequence_length, adapter_parameters=adapter_parameters
            )
        proxies = sum(tokens * shape.forward(length) for length, tokens in self.evaluated.items())
        return Cost.of("probes", tokens=self.probe_tokens, flops=probes) + Cost.of(
            "proxies", tokens=self.proxy_tokens, flops=proxies
        )

    def share(self, flops: float, shape: ModelShape, sequence_length: int, objective: Objective | None = None) -> float:
        """Return FLOPs over those of the stage's own training."""
        if objective is None:
            return flops / (self.stage_tokens * shape.train(sequence_length))
        return flops / objective.flops(shape, row_tokens=self.stage_tokens, length=sequence_length)


def eval_sequences(config: SearchConfig, old: Mixture | None) -> list[int]:
    """Held-out sequences of each domain, then target: old ones that count as one coordinate share twice a domain's number.

    So the cost of a search follows the number of *new* domains, however many the model has learned before.
    """
    wanted, names = config.proxies.eval_sequences, tuple(config.domains)
    coordinates, targets = coordinates_of(names, old, config.new_domains), [wanted] * len(config.targets)
    if coordinates.names == coordinates.domains:
        return [wanted] * len(names) + targets
    shared = [n for n in names if n not in coordinates.names]
    return [min(wanted, max(2, 2 * wanted // len(shared))) if n in shared else wanted for n in names] + targets


def estimate_search(
    config: SearchConfig, old: Mixture | None, sizes: Mapping[str, DomainSize] | None = None
) -> SearchEstimate:
    """Return what one search reads and evaluates: `opmix validate`, `opmix status`, lives and searches all ask here.

    Args:
        config: The settings.
        old: The mixture in use; None: there is none.
        sizes: By domain and target; without one, its rows are full and enough.
    """
    names, length = tuple(config.domains), config.sequence_length
    full = DomainSize(row=length, supervised=length, held_out_row=length)
    known = {n: (sizes or {}).get(n, full) for n in names}
    decision = DecisionProblem(
        domains=names,
        old=old,
        budget_tokens=config.budget.tokens,
        available_tokens={n: s.available for n, s in known.items()},
        seed=config.seed,
        new=config.new_domains,
    )
    method, settings = method_of(config), config.probe_settings
    design = method.design(decision)
    # A step is worth what so many rows of an average domain are; each domain's share of it is read at the domain's own rate.
    step = sequences_per_step(config.trainer) * fmean(s.supervised for s in known.values())
    read = [known[n].row / known[n].supervised for n in design.probes.domains]
    probes = [settings.num_steps * step * float(row @ read) for row in design.probes.R]
    held = [
        (wanted if s.held_out is None else min(wanted, s.held_out), s.held_out_row)
        for wanted, s in zip(
            eval_sequences(config, old),
            [*known.values(), *((sizes or {}).get(n, full) for n in config.targets)],
            strict=True,
        )
    ]
    stage_tokens = round(config.budget.tokens * fmean(read))
    candidates, looks = (CONFIRMING, len(method.looks)) if isinstance(method, TrainedProbes) else (1, 1)
    confirming = SearchEstimate(
        num_probes=candidates,
        num_points=candidates,
        probe_tokens=round(candidates * max(probes)),
        evaluated=_evaluated([(FULL, candidates)] * looks, held),
        stage_tokens=stage_tokens,
    )
    return SearchEstimate(
        num_probes=len(probes),
        num_points=len(design.points),
        probe_tokens=round(sum(probes)),
        evaluated=_evaluated(method.dearest_course(decision), held),
        stage_tokens=stage_tokens,
        confirming=confirming if config.decision.verify else None,
    )


def _evaluated(sweeps: Sequence[tuple[Fidelity, int]], held_out: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Tokens by row length, those of the current model, which every sweep has, included.

    Args:
        sweeps: Which of the rows are seen, and by how many models.
        held_out: Rows and their length, by domain.
    """
    total: dict[int, int] = {}
    for fidelity, models in sweeps:
        for rows, length in held_out:
            seen = math.ceil(rows / fidelity.stride(rows))
            total[length] = total.get(length, 0) + (models + 1) * seen * length
    return total
