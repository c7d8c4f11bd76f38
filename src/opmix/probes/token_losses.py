"""Losses of single tokens without the logits of a whole batch: backbone once, LM head in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import nn

from opmix.models.heads import evaluating, separate_head
from opmix.models.layers import base_model_of
from opmix.models.sharded import in_one_call

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once; fewer for large vocabularies."""
_CHUNK_ELEMENTS = 1 << 26
"""Logits that exist at once, 256 MB in float32."""


@dataclass(frozen=True)
class Batch:
    """Sequences on a device, and which of their tokens are scored.

    Attributes:
        inputs: What the model is called with: `input_ids` (b, T) and perhaps `position_ids`.
        positions: Where the hidden states of scored tokens are in the flattened (b * T) batch.
        targets: The tokens to predict there.
    """

    inputs: dict[str, torch.Tensor]
    positions: torch.Tensor
    targets: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """(b, T)."""
        return self.inputs["input_ids"].shape


def scored_states(model: nn.Module, head: nn.Module | None, batch: Batch) -> torch.Tensor:
    """Hidden states (N, H) of the scored tokens, or their logits (N, V) where there is no separate head."""
    inner: Any = base_model_of(model)
    if head is None:
        states = inner(**batch.inputs, use_cache=False).logits
    else:
        states = inner.base_model(**batch.inputs, use_cache=False).last_hidden_state
    return states.reshape(-1, states.shape[-1]).index_select(0, batch.positions.to(states.device))


def logits_in_chunks(head: nn.Module | None, states: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float32 logits of `states`, a slice of tokens at a time."""
    width = states.shape[-1] if head is None else _vocabulary(head)
    step = max(1, min(CHUNK_TOKENS, _CHUNK_ELEMENTS // max(width, 1)))
    for start in range(0, states.shape[0], step):
        part = slice(start, start + step)
        yield part, (states[part] if head is None else head(states[part])).float()


def scored_nll(model: nn.Module, head: nn.Module | None, batch: Batch) -> torch.Tensor:
    """Nats of each scored token, (N,); stays on the device."""
    if head is None:  # the model's own forward, which is one call already
        return _scored_nll(model, head, batch)
    return in_one_call(model, lambda: _scored_nll(model, head, batch))


def _scored_nll(model: nn.Module, head: nn.Module | None, batch: Batch) -> torch.Tensor:
    states = scored_states(model, head, batch)
    targets, nll = batch.targets.to(states.device), torch.zeros(len(batch.targets), device=states.device)
    for part, logits in logits_in_chunks(head, states):
        nll[part] = F.cross_entropy(logits, targets[part], reduction="none")
    return nll


def sequence_nll(model: nn.Module, head: nn.Module | None, batch: Batch) -> torch.Tensor:
    """Summed nats of each sequence, (b,), float64 where the device has it; stays on the device."""
    nll = scored_nll(model, head, batch)
    tokens = torch.zeros(batch.shape.numel(), device=nll.device)
    tokens[batch.positions.to(nll.device)] = nll
    tokens = tokens.view(batch.shape)
    return tokens.sum(dim=1) if tokens.device.type == "mps" else tokens.double().sum(dim=1)


def _vocabulary(head: nn.Module) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


__all__ = [
    "Batch",
    "evaluating",
    "logits_in_chunks",
    "scored_nll",
    "scored_states",
    "separate_head",
    "sequence_nll",
]
