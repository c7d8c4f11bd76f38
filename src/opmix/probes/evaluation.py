"""Held-out losses: per sequence, paired across proxies; and how far two models' predictions are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from opmix.errors import DataError, TrainingError
from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.mixing.paired import loss_errors
from opmix.models.layers import base_model_of
from opmix.models.sharded import is_sharded
from opmix.probes.interpolation import Proxies
from opmix.probes.token_losses import (
    Batch,
    evaluating,
    logits_in_chunks,
    scored_nll,
    scored_states,
    separate_head,
    sequence_nll,
)
from opmix.protocols.mixing_method import Fidelity
from opmix.runs.ranks import ranks_here
from opmix.runs.trace import span

WHOLE_LOGITS = 1 << 27
"""Logits of a batch that may exist at once where they cannot be avoided."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences of one domain, packed or padded on the right (padding is masked by its labels).

    Attributes:
        name: Evaluation set.
        input_ids: (S, T) int64.
        num_bytes: UTF-8 bytes of each sequence, (S,), or question, (Q,); for bits per byte. NaN: not known.
        labels: (S, T) with -100 where not scored; None: every token but the first.
        position_ids: (S, T) restarting at each document, or None.
        questions: (S,) rising, which of Q questions a sequence is an option of, its first one the right one: a question is one loss,
            minus the log-softmax of the right option's summed log-likelihood among all its options'. None: each sequence is a loss.

    Raises:
        DataError: Wrong shapes, or nothing to score.
    """

    name: str
    input_ids: npt.NDArray[np.int64]
    num_bytes: FloatArray
    labels: npt.NDArray[np.int64] | None = None
    position_ids: npt.NDArray[np.int64] | None = None
    questions: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 2 or self.input_ids.dtype.kind not in "iu":
            raise DataError(
                f"held-out set {self.name!r}: input_ids is {self.input_ids.dtype} {shape}; "
                "expected integers of shape (sequences, tokens), at least 1 x 2"
            )
        for field in ("labels", "position_ids"):
            array = getattr(self, field)
            if array is not None and array.shape != shape:
                raise DataError(f"held-out set {self.name!r}: {field} is {array.shape}; expected {shape}")
        if np.shape(self.num_bytes) != (len(self),):
            raise DataError(
                f"held-out set {self.name!r}: num_bytes is {np.shape(self.num_bytes)}; expected {(len(self),)}"
            )
        if not self.scored_tokens:
            raise DataError(f"held-out set {self.name!r}: every token is masked; expected some labels besides -100")

    def __len__(self) -> int:
        """Losses: sequences, or questions."""
        return len(self.input_ids) if self.questions is None else int(self.questions[-1]) + 1

    def first(self, num: int) -> HeldOut:
        """The first `num` sequences, or questions."""
        return self._chosen(slice(num))

    def thinned(self, every: int) -> HeldOut:
        """Every so manieth sequence, or question, spread as all are; four stay where there are four."""
        return self._chosen(slice(None, None, Fidelity(thinning=every).stride(len(self))))

    def _chosen(self, which: slice) -> HeldOut:
        rows: Any = which
        own: dict[str, Any] = {}
        if self.questions is not None:
            rows = np.isin(self.questions, np.arange(len(self))[which])
            own["questions"] = np.unique(self.questions[rows], return_inverse=True)[1]
        parts = {n: None if (a := getattr(self, n)) is None else a[rows] for n in ("labels", "position_ids")}
        return HeldOut(self.name, self.input_ids[rows], self.num_bytes[which], **parts, **own)

    @property
    def tokens(self) -> FloatArray:
        """What each loss counts: scored tokens of a sequence, (S,); one of a question, (Q,)."""
        return self._scored if self.questions is None else np.ones(len(self))

    @property
    def scored_tokens(self) -> int:
        """Of all sequences."""
        return int(self._scored.sum())

    @property
    def _scored(self) -> FloatArray:
        if self.labels is None:
            return np.full(len(self.input_ids), self.input_ids.shape[1] - 1, dtype=np.float64)
        return np.asarray((self.labels[:, 1:] != -100).sum(axis=1), dtype=np.float64)

    def losses_of(self, nll: FloatArray) -> FloatArray:
        """Summed nats by sequence, (S,), to those of each loss, (S,) or (Q,)."""
        if self.questions is None:
            return nll
        first = np.searchsorted(self.questions, np.arange(len(self)))
        best = np.minimum.reduceat(nll, first)
        return np.asarray(nll[first] - best + np.log(np.add.reduceat(np.exp(best[self.questions] - nll), first)))


@dataclass(frozen=True)
class Evaluation:
    """Losses of M models on E evaluation sets, with every sequence kept.

    Attributes:
        names: E names.
        nll: Per evaluation set, summed nats of each sequence, (M, S_e).
        tokens: Per evaluation set, scored tokens, (S_e,).
        num_bytes: Per evaluation set, (S_e,).
    """

    names: tuple[str, ...]
    nll: tuple[FloatArray, ...]
    tokens: tuple[FloatArray, ...]
    num_bytes: tuple[FloatArray, ...]

    @property
    def losses(self) -> FloatArray:
        """Nats per token, (M, E)."""
        return np.stack([n.sum(axis=1) / t.sum() for n, t in zip(self.nll, self.tokens, strict=True)], axis=1)

    @property
    def standard_errors(self) -> FloatArray:
        """Of the losses, over sequences, (M, E); NaN with fewer than two scored sequences."""
        return loss_errors(self.nll, self.tokens)

    @property
    def bits_per_byte(self) -> FloatArray:
        """(M, E)."""
        rows = zip(self.nll, self.num_bytes, strict=True)
        return np.stack([nll.sum(axis=1) / num_bytes.sum() / np.log(2) for nll, num_bytes in rows], axis=1)


@span("evaluate", "evaluating")
def evaluate(
    model: nn.Module,
    held_out: Sequence[HeldOut],
    *,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Losses of one model (M = 1).

    Args:
        model: A causal LM, bare or with adapters; its modes come back as they were.
        held_out: The evaluation sets.
        batch_tokens: Tokens per forward pass, at least one sequence.
        dtype: bfloat16 or float16: compute under autocast; None: in the model's own precision.

    Raises:
        TrainingError: A loss is NaN or infinite; names the evaluation set.
    """
    nll = _evaluate_all(model, held_out, batch_tokens, dtype)
    return _checked(_collect(held_out, [nll]), ["the model"])


@span("evaluate simulated models", "evaluating")
def evaluate_proxies(
    proxies: Proxies,
    points: Sequence[InterpolationWeights],
    held_out: Sequence[HeldOut],
    *,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Losses of every proxy on the same sequences; stops at the first loss that is not finite.

    Raises:
        TrainingError: A loss is NaN or infinite; names proxy and evaluation set.
    """
    rows: list[list[FloatArray]] = []
    with proxies.sweep(points) as models:
        for weights, model in zip(points, models, strict=True):
            rows.append(_evaluate_all(model, held_out, batch_tokens, dtype))
            _checked(_collect(held_out, rows[-1:]), [repr(weights)])
            if progress is not None:
                progress(len(rows), len(points))
    return _collect(held_out, rows)


Entered = Callable[[], AbstractContextManager[nn.Module]]
"""Makes a model exist for a while, such as `lambda: proxies.at(weights)` or `lambda: nullcontext(model)`."""


@span("compare simulated models", "evaluating")
def predictive_kl(
    context_a: Entered, context_b: Entered, held_out: Sequence[HeldOut], *, batch_tokens: int = 2048
) -> FloatArray:
    """Mean `KL(p_a || p_b)` of two models' next-token distributions, (E,), nats per scored token.

    The models may share the same resident weights: per batch a's logits are computed and kept, then b's.
    Larger
    batches mean fewer changes between the two and more memory.
    """
    means = []
    for held in held_out:
        total, rows = 0.0, None
        first = 0
        while first < len(held.input_ids):
            with context_a() as model, evaluating(model):
                if rows is None:
                    width = int(base_model_of(model).get_output_embeddings().weight.shape[0])
                    rows = _rows(held, min(batch_tokens, WHOLE_LOGITS // width))
                batch = _batch(held, first, first + rows, device_of(model))
                head = separate_head(model, batch.inputs["input_ids"])
                states = scored_states(model, head, batch)
                ours = [logits for _, logits in logits_in_chunks(head, states)]
            with context_b() as model, evaluating(model):
                head = separate_head(model, batch.inputs["input_ids"])
                states = scored_states(model, head, batch)
                for a, (_, b) in zip(ours, logits_in_chunks(head, states), strict=True):
                    total += float(_kl(a, b))
            first += rows
        means.append(total / held.scored_tokens)
    return np.array(means)


def _kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    log_a, log_b = torch.log_softmax(a, dim=-1), torch.log_softmax(b.to(a.device), dim=-1)
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1).double().sum()


def _evaluate_all(
    model: nn.Module, held_out: Sequence[HeldOut], batch_tokens: int, dtype: torch.dtype | None
) -> list[FloatArray]:
    """Summed nats of each sequence per evaluation set; results leave the device once, at the end."""
    sums: list[torch.Tensor] = []
    ranks, device = ranks_here(), device_of(model)
    with evaluating(model, dtype):
        head = separate_head(model, torch.as_tensor(held_out[0].input_ids[:1, :16], device=device))
        limit = batch_tokens
        if head is None:
            vocabulary = int(base_model_of(model).get_input_embeddings().weight.shape[0])
            limit = min(batch_tokens, WHOLE_LOGITS // vocabulary)
        own = [ranks.own(len(held.input_ids)) for held in held_out]
        for held, rows in zip(held_out, own, strict=True):
            sums.extend(_of_rows(model, head, held, rows, limit, -(-len(held.input_ids) // ranks.size)))
        flat = torch.cat(sums).cpu().numpy().astype(np.float64) if sums else np.empty(0)
    ends = np.cumsum([rows.stop - rows.start for rows in own])
    return [held.losses_of(ranks.gathered(nll)) for held, nll in zip(held_out, np.split(flat, ends[:-1]), strict=True)]


def _of_rows(
    model: nn.Module, head: nn.Module | None, held: HeldOut, rows: slice, batch_tokens: int, most: int
) -> Iterator[torch.Tensor]:
    """Summed nats of some rows, batch by batch; `most`: rows that any rank has.

    The ranks of a sharded model must call it equally often, so those with a row less do their last one again.
    """
    device = device_of(model)
    if not is_sharded(model):
        yield from (sequence_nll(model, head, batch) for batch in batches(held, batch_tokens, device, rows))
        return
    start = max(0, min(rows.start, len(held.input_ids) - most))
    done = torch.cat(
        [sequence_nll(model, head, b) for b in batches(held, batch_tokens, device, slice(start, start + most))]
    )
    yield done[rows.start - start : rows.stop - start]


@span("evaluate", "evaluating")
def token_nll(model: nn.Module, held_out: Sequence[HeldOut], *, batch_tokens: int = 8192) -> list[FloatArray]:
    """Nats of every scored token of each evaluation set, (N_e,), in the order of its sequences.

    Raises:
        TrainingError: A loss is NaN or infinite; names the evaluation set.
    """
    tables = []
    with evaluating(model):
        device = device_of(model)
        head = separate_head(model, torch.as_tensor(held_out[0].input_ids[:1, :16], device=device))
        for held in held_out:
            parts = [scored_nll(model, head, batch).cpu().numpy() for batch in batches(held, batch_tokens, device)]
            tables.append(np.concatenate(parts).astype(np.float64))
            if not np.isfinite(tables[-1]).all():
                raise TrainingError(
                    f"a token of {held.name!r} has no finite loss; expected finite numbers: a probe diverged "
                    "(lower the learning rate)"
                )
    return tables


def _rows(held: HeldOut, batch_tokens: int) -> int:
    return max(1, batch_tokens // held.input_ids.shape[1])


def batches(held: HeldOut, batch_tokens: int, device: torch.device, part: slice | None = None) -> Iterator[Batch]:
    """Sequences, or a part of them, in batches of about so many tokens, at least one sequence each."""
    rows, part = _rows(held, batch_tokens), part or slice(0, len(held.input_ids))
    for first in range(part.start, part.stop, rows):
        yield _batch(held, first, min(first + rows, part.stop), device)


def _batch(held: HeldOut, first: int, last: int, device: torch.device) -> Batch:
    # What is scored is found out here, on the CPU: a mask on the device would make it wait for every batch.
    ids = np.ascontiguousarray(held.input_ids[first:last], dtype=np.int64)
    targets = ids if held.labels is None else held.labels[first:last]
    row, column = np.nonzero(targets[:, 1:] != -100)
    inputs = {"input_ids": torch.as_tensor(ids, device=device)}
    if held.position_ids is not None:
        inputs["position_ids"] = torch.as_tensor(held.position_ids[first:last], dtype=torch.int64, device=device)
    return Batch(
        inputs=inputs,
        positions=torch.as_tensor(row * ids.shape[1] + column, device=device),
        targets=torch.as_tensor(targets[:, 1:][row, column].astype(np.int64), device=device),
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the token embedding is, and so where batches go."""
    embedding = base_model_of(model).get_input_embeddings()
    device: torch.device = next(embedding.parameters()).device
    return device


def _collect(held_out: Sequence[HeldOut], rows: Sequence[Sequence[FloatArray]]) -> Evaluation:
    return Evaluation(
        names=tuple(held.name for held in held_out),
        nll=tuple(np.stack(column) for column in zip(*rows, strict=True)),
        tokens=tuple(held.tokens for held in held_out),
        num_bytes=tuple(np.asarray(held.num_bytes, dtype=np.float64) for held in held_out),
    )


def _checked(result: Evaluation, labels: Sequence[str]) -> Evaluation:
    bad = np.argwhere(~np.isfinite(result.losses))
    if len(bad):
        row, column = bad[0]
        raise TrainingError(
            f"held-out loss of {labels[row]} on {result.names[column]!r} is {result.losses[row, column]}; "
            "expected a finite number: the model or a probe diverged (lower the learning rate), or its "
            "weights are damaged"
        )
    return result
