"""Held-out losses: per sequence, paired across proxies, without materialising the logits of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)

from opmix.errors import TrainingError
from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.probes.interpolation import Proxies

_LOGIT_CHUNK = 1024  # tokens whose logits exist at once
_ALTERED_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences of one domain.

    Attributes:
        name: Evaluation set.
        input_ids: (S, T) int64.
        num_bytes: UTF-8 bytes of each sequence, (S,); for bits per byte.
        labels: (S, T) with -100 where not scored; None: every token but the first.
        position_ids: (S, T) restarting at each document, or None.
    """

    name: str
    input_ids: np.ndarray
    num_bytes: FloatArray
    labels: np.ndarray | None = None
    position_ids: np.ndarray | None = None

    @property
    def tokens(self) -> FloatArray:
        """Scored tokens of each sequence, (S,)."""
        if self.labels is None:
            return np.full(len(self.input_ids), self.input_ids.shape[1] - 1, dtype=np.float64)
        return (self.labels[:, 1:] != -100).sum(axis=1).astype(np.float64)


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
        """Of the losses, over sequences, (M, E)."""
        columns = []
        for nll, tokens in zip(self.nll, self.tokens, strict=True):
            rates = nll / tokens
            columns.append(
                rates.std(axis=1, ddof=1) / np.sqrt(len(tokens)) if len(tokens) > 1 else np.full(len(nll), np.nan)
            )
        return np.stack(columns, axis=1)

    @property
    def bits_per_byte(self) -> FloatArray:
        """(M, E)."""
        return np.stack(
            [n.sum(axis=1) / b.sum() / np.log(2) for n, b in zip(self.nll, self.num_bytes, strict=True)],
            axis=1,
        )

    def difference_error(self, a: int, b: int) -> FloatArray:
        """Standard error of the paired difference between models a and b, (E,)."""
        errors = []
        for nll, tokens in zip(self.nll, self.tokens, strict=True):
            rates = (nll[a] - nll[b]) / tokens
            errors.append(rates.std(ddof=1) / np.sqrt(len(tokens)) if len(tokens) > 1 else np.nan)
        return np.array(errors)


def evaluate(model: torch.nn.Module, held_out: Sequence[HeldOut], *, batch_tokens: int = 8192) -> Evaluation:
    """Losses of one model (M = 1).

    Raises:
        TrainingError: A loss is NaN or infinite; names the evaluation set.
    """
    nll = tuple(_sequence_nll(model, h, batch_tokens)[None] for h in held_out)
    return _checked(
        Evaluation(
            tuple(h.name for h in held_out),
            nll,
            tuple(h.tokens for h in held_out),
            tuple(h.num_bytes for h in held_out),
        ),
        ["model"],
    )


def evaluate_proxies(
    proxies: Proxies,
    points: Sequence[InterpolationWeights],
    held_out: Sequence[HeldOut],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Losses of every proxy on the same sequences.

    Raises:
        TrainingError: A loss is NaN or infinite; names proxy and evaluation set.
    """
    rows: list[list[FloatArray]] = [[] for _ in held_out]
    for done, weights in enumerate(points):
        with proxies.at(weights) as model:
            for column, h in zip(rows, held_out, strict=True):
                column.append(_sequence_nll(model, h, batch_tokens))
        if progress is not None:
            progress(done + 1, len(points))
    result = Evaluation(
        tuple(h.name for h in held_out),
        tuple(np.stack(c) for c in rows),
        tuple(h.tokens for h in held_out),
        tuple(h.num_bytes for h in held_out),
    )
    return _checked(result, [repr(w) for w in points])


def _checked(result: Evaluation, labels: Sequence[str]) -> Evaluation:
    bad = np.argwhere(~np.isfinite(result.losses))
    if len(bad):
        row, column = bad[0]
        raise TrainingError(
            f"held-out loss of {labels[row]} on {result.names[column]!r} is {result.losses[row, column]}; expected a finite number: "
            "the model or a probe diverged (lower the learning rate) or its weights are damaged"
        )
    return result


@torch.inference_mode()  # type: ignore[untyped-decorator, unused-ignore]
def _sequence_nll(model: torch.nn.Module, held_out: HeldOut, batch_tokens: int) -> FloatArray:
    """Summed nats of each sequence, (S,), float64."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows = max(1, batch_tokens // held_out.input_ids.shape[1])
    sums = []
    try:
        for first in range(0, len(held_out.input_ids), rows):
            part = slice(first, first + rows)
            ids = torch.as_tensor(held_out.input_ids[part], device=device)
            labels = ids if held_out.labels is None else torch.as_tensor(held_out.labels[part], device=device)
            extra = (
                {}
                if held_out.position_ids is None
                else {"position_ids": torch.as_tensor(held_out.position_ids[part], device=device)}
            )
            sums.append(_batch_nll(model, ids, labels, extra))
    finally:
        model.train(was_training)
    return torch.cat(sums).double().cpu().numpy()


def _batch_nll(
    model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, extra: dict[str, torch.Tensor]
) -> torch.Tensor:
    targets = labels[:, 1:]
    head = output_head(model)
    if head is None:
        logits = model(input_ids=ids, use_cache=False, **extra).logits[:, :-1]
        return _nll(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)).view_as(targets).sum(dim=1)
    inner = causal_lm(model)
    hidden = inner.base_model(input_ids=ids, use_cache=False, **extra).last_hidden_state[:, :-1]
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    chunks = [
        _nll(head(flat[i : i + _LOGIT_CHUNK]), wanted[i : i + _LOGIT_CHUNK]) for i in range(0, len(flat), _LOGIT_CHUNK)
    ]
    return torch.cat(chunks).view_as(targets).sum(dim=1)


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="none")


def causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a `PeftModel`, or the model itself."""
    inner: torch.nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def output_head(model: torch.nn.Module) -> torch.nn.Module | None:
    """The output embedding, where hidden state times head is all there is to the logits; None: use the model's own logits."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    altered = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _ALTERED_LOGITS)
    head = inner.get_output_embeddings()
    # XGLM, BART and others compute more between backbone and head than these know of: they have no separate backbone.
    if altered or head is None or inner.base_model is inner:
        return None
    return head
