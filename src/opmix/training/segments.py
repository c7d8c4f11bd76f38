"""Rows of a run whose mixture is decided as it goes: planned segment by segment, looked up when a step begins.

The Trainer's loader reads ahead, so it is given numbers only (`Places`); which rows they stand for is asked when a step's batches are due,
after the decision. A segment on the mixture of the one before it goes on with that one's plan, so that a run of text whose mixture never
changes is the run that was planned as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from opmix.compute.budget import for_transformers, sequences_per_step
from opmix.data import MixtureDataset, MixturePlan, Rows, supervised_per_row
from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.online_mixer import MixerSegment
from opmix.training.factory import stack_rows
from opmix.training.objectives import Objective
from opmix.training.plan import TrainingPlan, drawn_tokens, plan_training, supervised_per_step

DOMAINS = "opmix_domains"
"""Key of a batch's domains, (n,), beside what the model takes."""


class Places(Dataset[dict[str, torch.Tensor]]):
    """Numbers 0 .. N - 1 in place of rows; `restarts` is that of the rows."""

    def __init__(self, num: int, *, restarts: bool = False) -> None:
        self._num, self.restarts = num, restarts

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"place": torch.tensor([index])}


class SegmentRows:
    """What a run reads.

    Args:
        rows: Training rows by domain.
        domains: Of the run, in order.
        first: The first mixture, for the size of matched micro-batches.
        steps: Optimizer steps of the whole run, those of `previous` included.
        arguments: The user's trainer arguments.
        seed: Of the order.
        objective: What is learned from a row.
        max_epochs: See `plan_mixture`; a mixture that asks for more than is left is lowered to it, at the gain of the other domains.
        document_mask: See `MixtureDataset`.
        begin_at: Optimizer steps that `previous` holds, such as a stage's prefix.
        previous: The plan to go on from; with no steps it says how far earlier stages have read.

    Raises:
        ConfigError: `previous` has other domains or other steps.
    """

    def __init__(
        self,
        rows: Mapping[str, Rows],
        domains: Sequence[str],
        first: Mixture,
        *,
        steps: int,
        arguments: Mapping[str, Any],
        seed: int,
        objective: Objective,
        max_epochs: Mapping[str, float] | None = None,
        document_mask: bool = False,
        begin_at: int = 0,
        previous: TrainingPlan | None = None,
    ) -> None:
        self.rows, self.domains, self.steps = {n: rows[n] for n in domains}, tuple(domains), steps
        self.given: list[tuple[list[float], int]] = []
        """Weights and steps of the segments so far, as numbers: adding them to new `SegmentRows` plans the same rows."""
        self.segments: list[MixerSegment] = []
        self._max_epochs, self._seed, self._given_arguments = max_epochs, seed, arguments
        self._rest: dict[str, Any] = {"seed": seed, "objective": objective, "document_mask": document_mask}
        grouped = objective.grouped or any(r.conversations for r in self.rows.values())
        whole = plan_training(self.rows, first, steps=steps, arguments=arguments, **self._rest) if grouped else None
        self._accumulation = 0 if whole is None else whole.accumulation
        self.arguments: Mapping[str, Any] = for_transformers(arguments) if whole is None else whole.arguments
        before = previous or self._nothing()
        if whole is not None and before.accumulation:  # what earlier steps have is what all have
            self._accumulation = before.accumulation
            self.arguments = {**self.arguments, "gradient_accumulation_steps": self._accumulation}
        self._plan = self._phase = replace(before, accumulation=self._accumulation)
        self._phase_steps, self._begin_at, self._first_row = 0, begin_at, len(before.plan)
        self._check(before)

    def _check(self, before: TrainingPlan) -> None:
        groups = 0 if before.ends is None else len(before.ends)
        found = groups / self._accumulation if self._accumulation else len(before.plan) / self._each
        if before.plan.names != self.domains or found != self._begin_at:
            raise ConfigError(
                f"previous: a plan of {found:g} steps over {list(before.plan.names)}; expected {self._begin_at} steps "
                "over "
                f"{list(self.domains)}, in that order: a run goes on with the plan of what was trained before it"
            )

    @property
    def _each(self) -> int:
        """Places of a step."""
        return self._accumulation or sequences_per_step(self._given_arguments)

    def _nothing(self) -> TrainingPlan:
        none = np.empty(0, dtype=np.int64)
        available = tuple(len(r) for r in self.rows.values())
        plan = MixturePlan(self.domains, none.astype(np.int16), none, available, self._seed)
        return TrainingPlan(
            plan=plan,
            dataset=MixtureDataset(self.rows, plan),
            arguments={},
            steps=0,
            row_tokens=0,
            supervised_tokens=0,
            shares={},
        )

    @property
    def planned(self) -> int:
        """Optimizer steps that rows are known for: where the present segment ends."""
        return self._begin_at + sum(segment.steps for segment in self.segments)

    @property
    def places(self) -> Places:
        """One number for every row, or for every micro-batch where these are matched."""
        restarts = self._rest["document_mask"] or any(rows.restarts for rows in self.rows.values())
        return Places(self.steps * self._each, restarts=restarts)

    def add(self, segment: MixerSegment) -> MixerSegment:
        """Plan the next segment; returns it as it will be: cut where the run ends, and no domain beyond its `max_epochs`.

        Raises:
            DataError: A domain with a share has no rows, or all together have too few.
        """
        steps = min(segment.steps, self.steps - self.planned)
        mixture = segment.mixture.on(self.domains)
        return self.replay(self._affordable(mixture.weights, steps).tolist(), steps)

    def replay(self, weights: Sequence[float], steps: int) -> MixerSegment:
        """Plan a segment of `given`."""
        mixture = Mixture(
            self.domains, list(weights)
        )  # from the numbers that are kept, so that a resumed run has the same
        if self._accumulation or not self.segments or self.segments[-1].mixture != mixture:
            self._phase, self._phase_steps = self._plan, 0
        self._phase_steps += steps
        self._plan = plan_training(
            self.rows,
            mixture,
            steps=self._phase_steps,
            arguments=self._given_arguments,
            max_epochs=self._max_epochs,
            previous=self._phase,
            **self._rest,
        )
        self.given.append((list(weights), steps))
        self.segments.append(MixerSegment(mixture, steps))
        return self.segments[-1]

    def _affordable(self, shares: FloatArray, steps: int) -> FloatArray:
        """Shares that what is left of every domain can pay for, (D,)."""
        budget = steps * supervised_per_step(self.rows, self._given_arguments)
        caps, used = np.full(len(shares), np.inf), self._plan.plan.cursors()
        for k, name in enumerate(self.domains):
            if (limit := (self._max_epochs or {}).get(name)) is not None:
                left = np.floor(limit * len(self.rows[name]) + 1e-9) - used[name]
                caps[k] = max(0.0, left) * supervised_per_row(self.rows[name]) / budget * (1 - 1e-9)
        return lowered(shares, caps)

    def batch(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """A micro-batch: what the model takes, and `DOMAINS`."""
        indices, plan = places.flatten().tolist(), self._plan
        if plan.ends is not None:
            first = int(plan.ends[indices[0] - 1]) if indices[0] else 0
            batch, where = plan.dataset[indices[0]], np.arange(first, int(plan.ends[indices[0]]))
            return {**batch, DOMAINS: torch.from_numpy(plan.plan.at(where)[0])}
        batch = stack_rows([plan.dataset[i] for i in indices])
        return {**batch, DOMAINS: torch.from_numpy(plan.plan.at(indices)[0])}

    def counted(self, what: Literal["supervised", "lengths"]) -> FloatArray:
        """`supervised` or `lengths` of the rows of all segments so far, by domain, (D,)."""
        return drawn_tokens(self.rows, self._plan.plan[self._first_row :], what)

    @property
    def whole(self) -> TrainingPlan:
        """The run's rows from `previous` on as one plan, its numbers those of all segments."""
        supervised = self.counted("supervised")
        shares = {n: float(s / supervised.sum()) for n, s in zip(self.domains, supervised, strict=True)}
        return replace(
            self._plan,
            steps=self.planned - self._begin_at,
            row_tokens=int(self.counted("lengths").sum()),
            supervised_tokens=int(supervised.sum()),
            shares=shares,
            arguments=self.arguments,
        )


def lowered(shares: FloatArray, caps: FloatArray) -> FloatArray:
    """Shares no higher than caps, (D,): the excess goes to the others in proportion, evenly where these have nothing.

    Where the caps leave no way, the shares come back as they were: planning them says what is missing.

    Examples:
        >>> lowered(np.array([0.6, 0.3, 0.1]), np.array([0.2, 1.0, 1.0])).round(3).tolist()
        [0.2, 0.6, 0.2]
    """
    if caps.sum() < 1:
        return shares
    kept = shares.copy()
    while (over := kept > caps).any():
        kept = np.minimum(kept, caps)
        room = np.where(kept < caps, kept, 0.0)
        if room.sum() <= 0:
            room = (kept < caps).astype(np.float64)
        if not over.any() or room.sum() <= 0:
            break
        kept = kept + (1 - kept.sum()) * room / room.sum()
    return kept
