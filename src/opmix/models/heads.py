"""A model's LM head apart from the rest of it, where that is the whole story of its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from opmix.models.layers import base_model_of
from opmix.models.sharded import in_one_call, is_sharded

_ALTERED = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)
"""Settings of a config that do something to the logits after the LM head."""


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
        ours = in_one_call(inner, lambda: head(inner.base_model(input_ids=few, use_cache=False).last_hidden_state))
    except (AttributeError, TypeError, RuntimeError):
        return None
    theirs = inner(input_ids=few, use_cache=False).logits.float()
    tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 2e-2
    ours = ours.float()
    same = ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
    # Neither side finite: not for us to judge here, the loss will say so.
    return head if same or not bool(torch.isfinite(theirs).all()) else None


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Eval mode and no gradients, every module's own mode back afterwards; `dtype`: autocast to it."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    low = dtype in (torch.bfloat16, torch.float16)
    try:
        model.eval()
        # FSDP's bookkeeping of gathered weights does not survive inference mode.
        off = torch.no_grad() if is_sharded(model) else torch.inference_mode()
        with off, torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=low):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
