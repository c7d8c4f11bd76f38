"""Old data as continual learners look back at it: rows by seed and step alone, losses and gradients of them, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import nn

from opmix.continual.base import StageContext
from opmix.continual.stepping import trained_parameters
from opmix.data import MixtureDataset, MixturePlan, plan_mixture
from opmix.data.sampler import draw
from opmix.mixing.mixture import Mixture

Int64 = npt.NDArray[np.int64]
Batch = dict[str, torch.Tensor]
Gradients = list[torch.Tensor]
"""Of the trained parameters, in their order."""


def planned(lesson: StageContext, mixture: Mixture, num: int) -> list[Any]:
    """`num` old rows, shared out by a mixture of old domains."""
    sizes = {name: len(rows) for name, rows in lesson.old.items()}
    return _rows(lesson, plan_mixture(mixture, num, sizes, seed=lesson.seed))


def keep(lesson: StageContext, memory: int) -> dict[str, Int64]:
    """Which rows of each old domain are remembered: the first `memory` of a shuffled order."""
    sizes = {name: len(lesson.old[name]) for name in sorted(lesson.old)}
    return {name: draw(f"{name}/memory", lesson.seed, 0, min(memory, size), size) for name, size in sizes.items()}


def recall(lesson: StageContext, name: str, kept: Int64, *, step: int, num: int) -> list[Any]:
    """`num` of the remembered rows of one domain for one step, told from the step alone; over the steps all come equally often."""
    chosen = kept[draw(f"{name}/recall", lesson.seed, step * num, num, len(kept))]
    plan = MixturePlan((name,), np.zeros(num, dtype=np.int16), chosen, (len(lesson.old[name]),), lesson.seed)
    return _rows(lesson, plan)


def _rows(lesson: StageContext, plan: MixturePlan) -> list[Any]:
    dataset = MixtureDataset(lesson.old, plan, document_mask=lesson.document_mask)
    return [dataset[i] for i in range(len(dataset))]


def batches_of(lesson: StageContext, rows: Sequence[Any], size: int, device: torch.device) -> Iterator[Batch]:
    """Rows in batches of `size`, on the device."""
    for start in range(0, len(rows), size):
        batch = lesson.collate(rows[start : start + size])
        yield {key: value.to(device) for key, value in batch.items()}


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """What is predicted for every position but the first, (n, T - 1, V) float32."""
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "position_ids")}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[:, :-1].float()


def summed_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats over the supervised tokens; `labels` (n, T - 1) with -100 where nothing is learned."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="sum")


@contextmanager
def looking_back(model: nn.Module, seed: int) -> Iterator[list[nn.Parameter]]:
    """Backward passes whose gradients are not the step's: gradients, mode and random state are as before on leaving.

    Hands out the trained parameters, their `.grad` empty. The model trains inside, so that gradient checkpointing works.
    """
    parameters = list(trained_parameters(model).values())
    kept, training = [p.grad for p in parameters], model.training
    device = parameters[0].device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            model.train()
            for p in parameters:
                p.grad = None
            yield parameters
    finally:
        model.train(training)
        for p, gradient in zip(parameters, kept, strict=True):
            p.grad = gradient


def memory_gradient(
    model: nn.Module, lesson: StageContext, rows: Sequence[Any], *, size: int, seed: int, scale: float
) -> Gradients:
    """Gradient of the mean loss over the supervised tokens of old rows, times `scale`; booked.

    Args:
        model: As the Trainer runs it.
        lesson: Whose collator and usage.
        rows: Old rows.
        size: Rows that the device takes at once.
        seed: Of dropout.
        scale: Of the loss while gradients are computed (fp16).
    """
    supervised = sum(int((row["labels"][1:] != -100).sum()) for row in rows)
    with looking_back(model, seed) as parameters:
        for batch in batches_of(lesson, rows, size, parameters[0].device):
            nll = summed_nll(logits_of(model, batch), batch["labels"][:, 1:])
            (nll * (scale / max(supervised, 1))).backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    book(lesson, sum(len(row["input_ids"]) for row in rows))
    return found


def book(lesson: StageContext, tokens: int) -> None:
    """A forward and backward pass of the whole model over `tokens`."""
    lesson.usage.book(tokens=tokens, flops=tokens * lesson.shape.train(lesson.sequence_length))


def share_out(num: int, names: Sequence[str]) -> Int64:
    """`num` rows over domains as evenly as whole rows allow, at least one each, (D,).

    Examples:
        >>> share_out(5, ["a", "b"]).tolist(), share_out(1, ["a", "b"]).tolist()
        ([3, 2], [1, 1])
    """
    first, rest = divmod(num, len(names))
    return np.maximum(first + (np.arange(len(names)) < rest), 1).astype(np.int64)
