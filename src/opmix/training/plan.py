"""Training on a mixture, planned: which rows, in which micro-batches, and what they come to.

Text rows are worth the same and fill batches of equal size, as ever. Rows of conversations are worth what they have supervised tokens.
There a step is a number of *supervised tokens*, not of rows: rows are drawn so that the supervised tokens have the mixture's shares, and
micro-batches end where their quota is reached. Two runs with the same domains and arguments, whatever their mixtures, have the same steps
and (up to a row a step) the same supervised tokens in each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from opmix.compute.budget import ACCUMULATION, PER_DEVICE, Batch, for_transformers, sequences_per_step, world_size
from opmix.compute.cost import Cost
from opmix.compute.flops import ModelShape
from opmix.data import (
    GroupedDataset,
    PackedSequences,
    Plan,
    Rows,
    plan_stretch,
    plan_supervised,
    supervised_per_row,
)
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.training.objectives import CAUSAL_LM, Objective, Usage

_MORE_ROWS = 0.25
"""By how much a micro-batch may have more rows than `per_device_train_batch_size` before it is split."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What one run reads."""

    plan: Plan
    dataset: Dataset[Any]
    """From the first row on, the rows of `previous` included."""
    arguments: Mapping[str, Any]
    """The trainer's, with the batch size that goes with the dataset."""
    steps: int
    """Of this part, as are the numbers below."""
    row_tokens: int
    """Tokens of all rows, supervised or not, padding left out."""
    supervised_tokens: int
    shares: Mapping[str, float]
    """Realised shares of supervised tokens."""
    accumulation: int = 0
    """Micro-batches of a step where they are matched; 0: rows are worth the same, and the arguments' batch is used."""
    ends: npt.NDArray[np.int64] | None = None
    """Index in the plan after each micro-batch's last row."""


def supervised_per_step(rows: Mapping[str, Rows], arguments: Mapping[str, Any]) -> float:
    """Supervised tokens of one optimizer step: those of as many rows of an average domain as the arguments' batch has."""
    worth = [supervised_per_row(r) for r in rows.values()]
    return sequences_per_step(arguments) * float(np.mean(worth))


def steps_for(tokens: int, rows: Mapping[str, Rows], arguments: Mapping[str, Any]) -> int:
    """Whole steps nearest to a budget of supervised tokens, at least one."""
    return max(1, round(tokens / supervised_per_step(rows, arguments)))


def plan_training(
    rows: Mapping[str, Rows],
    mixture: Mixture,
    *,
    steps: int,
    arguments: Mapping[str, Any],
    seed: int,
    objective: Objective = CAUSAL_LM,
    max_epochs: Mapping[str, float] | None = None,
    document_mask: bool = False,
    previous: TrainingPlan | None = None,
) -> TrainingPlan:
    """Plan `steps` optimizer steps on `mixture`, the same rows in each on any number of ranks.

    Args:
        rows: Training rows by domain; runs to be compared must be given the same.
        mixture: Shares of supervised tokens.
        steps: Optimizer steps.
        arguments: The user's trainer arguments.
        seed: Of the order.
        objective: What is learned from a row.
        max_epochs: See `plan_mixture`.
        document_mask: See `MixtureDataset`.
        previous: Plan of the same run to append to, as when the mixture changes inside a stage; or one of no steps that says how far
            earlier stages have read.

    Raises:
        DataError: A domain with a share has no rows, or would be used more often than `max_epochs`.
    """
    before, accumulation, ranks = None if previous is None else previous.plan, 0, world_size()
    if objective.grouped or any(r.conversations for r in rows.values()):
        fixed = 0 if previous is None else previous.accumulation
        plan: Plan = plan_supervised(
            mixture,
            steps * supervised_per_step(rows, arguments),
            {n: r.supervised for n, r in rows.items()},
            seed=seed,
            max_epochs=max_epochs,
            previous=before,
            min_rows=steps * max(fixed, 1) * ranks,
        )
        num = len(plan) - (0 if before is None else len(before))
        accumulation = fixed or _accumulation(num / steps, Batch.of(arguments).micro, ranks)
    else:
        plan = plan_stretch(
            mixture,
            steps * sequences_per_step(arguments),
            {name: len(r) for name, r in rows.items()},
            seed=seed,
            max_epochs=max_epochs,
            previous=before,
            sequence_length=next(iter(rows.values())).sequence_length,
        )
    done = len(before) if before is not None else 0
    part = plan[done:]
    dataset: Dataset[Any] = objective.dataset(rows, plan, document_mask=document_mask)
    ends, arguments = None, for_transformers(arguments)
    if accumulation:
        ends = done + group_ends(_gather(rows, part, "supervised"), steps * accumulation * ranks)
        if previous is not None and previous.ends is not None:
            ends = np.concatenate([previous.ends, ends])
        dataset = GroupedDataset(dataset, ends, objective.collate)
        arguments = {**arguments, PER_DEVICE: 1, ACCUMULATION: accumulation}
    return TrainingPlan(
        plan=plan,
        dataset=dataset,
        arguments=arguments,
        steps=steps,
        accumulation=accumulation,
        ends=ends,
        **_amounts(rows, part),
    )


def first_steps(plan: TrainingPlan, rows: Mapping[str, Rows], steps: int) -> TrainingPlan:
    """The same run, with the amounts of its first optimizer steps only; the dataset stays whole, so that the run can go on.

    For plans that append to no other.
    """
    each = len(plan.plan) // plan.steps
    count = steps * each if plan.ends is None else int(plan.ends[steps * len(plan.ends) // plan.steps - 1])
    return replace(plan, steps=steps, **_amounts(rows, plan.plan[:count]))


def _amounts(rows: Mapping[str, Rows], part: Plan) -> dict[str, Any]:
    drawn = drawn_tokens(rows, part, "supervised")
    return {
        "row_tokens": int(drawn_tokens(rows, part, "lengths").sum()),
        "supervised_tokens": int(drawn.sum()),
        "shares": {name: float(d / drawn.sum()) for name, d in zip(part.names, drawn, strict=True)},
    }


def drawn_tokens(rows: Mapping[str, Rows], part: Plan, what: Literal["supervised", "lengths"]) -> FloatArray:
    """Supervised tokens or all tokens of the rows of a plan, by domain, (D,)."""
    if all(isinstance(rows[name], PackedSequences) for name in part.names):  # rows of one length: counting them will do
        return np.array([n * float(rows[name].sequence_length) for name, n in part.counts().items()])
    domain, _ = part.at(np.arange(len(part)))
    weights = _gather(rows, part, what).astype(np.float64)
    return np.bincount(domain, weights=weights, minlength=len(part.names)).astype(np.float64)


def _accumulation(rows_per_step: float, micro: int, ranks: int) -> int:
    """Micro-batches of a step on each rank, so that none has many more rows than a device takes at once, and none is empty."""
    wanted = math.ceil(rows_per_step / (micro * ranks) - _MORE_ROWS)
    return max(1, min(wanted, int(rows_per_step / ranks)))


def _gather(rows: Mapping[str, Rows], plan: Plan, what: str) -> npt.NDArray[np.int64]:
    """`supervised` or `lengths` of every row of the plan, (N,)."""
    domain, row = plan.at(np.arange(len(plan)))
    values = np.zeros(len(plan), dtype=np.int64)
    for k, name in enumerate(plan.names):
        mine = domain == k
        if mine.any():
            values[mine] = getattr(rows[name], what)[row[mine]]
    return values


def group_ends(worth: npt.NDArray[np.int64], num_groups: int) -> npt.NDArray[np.int64]:
    """Cut rows into groups of nearly equal worth, at least one row each: the index after each group's last row.

    Every cut is at the row nearest to its place, so that errors do not add up.

    Examples:
        >>> group_ends(np.array([3, 1, 1, 1, 6]), 3).tolist()
        [2, 4, 5]
    """
    sums = np.cumsum(worth, dtype=np.float64)
    targets = sums[-1] * np.arange(1, num_groups + 1) / num_groups
    after = np.minimum(np.searchsorted(sums, targets), len(worth) - 1)
    before = np.where(after > 0, sums[after - 1], 0.0)
    ends = np.where(targets - before < sums[after] - targets, after, after + 1)
    ends[-1] = len(worth)
    steps = np.arange(num_groups)
    ends = np.maximum.accumulate(np.maximum(ends, 1) - steps) + steps
    return np.minimum(ends, len(worth) - (num_groups - 1 - steps)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TrainingTotals:
    """Tokens and FLOPs of a run that is over."""

    row_tokens: int
    supervised_tokens: int
    sampled_tokens: int
    flops: float
    shares: Mapping[str, float]
    extra: Mapping[str, float] = field(default_factory=dict)
    """Tokens and FLOPs of passes beside the training, see `Usage.extra`."""

    def cost(self, seconds: float = 0.0) -> Cost:
        """Return the cost; passes beside the training are `overhead`, their time is the training's."""
        tokens: dict[str, float] = {"training": self.row_tokens + self.sampled_tokens}
        flops = {"training": self.flops}
        if self.extra:
            tokens["overhead"], flops["overhead"] = self.extra.get("tokens", 0.0), self.extra.get("flops", 0.0)
        return Cost(tokens=tokens, flops=flops, seconds={"training": seconds})

    def json(self) -> dict[str, Any]:
        """Return what a probe's record keeps."""
        return {name: value for name, value in asdict(self).items() if name != "extra"}


def training_cost(
    plan: TrainingPlan,
    usage: Usage,
    objective: Objective,
    shape: ModelShape,
    length: int,
    adapter_parameters: int | None = None,
) -> TrainingTotals:
    """Return tokens and FLOPs of a run that is over: counted by its trainer where it does, else told from the rows."""
    told = objective.flops(shape, row_tokens=plan.row_tokens, length=length, adapter_parameters=adapter_parameters)
    return TrainingTotals(
        row_tokens=plan.row_tokens,
        supervised_tokens=plan.supervised_tokens,
        sampled_tokens=usage.sampled_tokens,
        flops=told if usage.flops is None else usage.flops,
        shares=plan.shares,
        extra=dict(usage.extra),
    )
