"""Losses of single tokens without the logits of a whole batch: backbone once, LM head in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import nn

from opmix.models.load import base_model_of

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once; fewer for large vocabularies."""
_CHUNK_ELEMENTS = 1 << 26
"""Logits that exist at once, 256 MB in float32."""
_ALTERED = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)
"""Settings of a config that do something to the logits after the LM head."""


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


def separate_head(model: nn.Module, ids: torch.Tensor) -> nn.Module | None:
    """The LM head, where applying it to the backbone's last hidden state gives the model's logits, else None.

    Known alterations are read off the config; whatever else an architecture does is found by trying a few
    tokens.
    """
    inner: Any = base_model_of(model)
    config = inner.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _ALTERED):
        return None
    head = inner.get_output_embeddings()
    if head is None or inner.base_model is inner:
        return None
    few = ids[:1, :16]
    try:
        ours = head(inner.base_model(input_ids=few, use_cache=False).last_hidden_state).float()
    except (AttributeError, TypeError, RuntimeError):
        return None
    theirs = inner(input_ids=few, use_cache=False).logits.float()
    tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 2e-2
    same = ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
    # Neither side finite: not for us to judge here, the loss will say so.
    return head if same or not bool(torch.isfinite(theirs).all()) else None


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


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Eval mode and no gradients, every module's own mode back afterwards; `dtype`: autocast to it."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    low = dtype in (torch.bfloat16, torch.float16)
    try:
        model.eval()
        with torch.inference_mode(), torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=low):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _vocabulary(head: nn.Module) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])
