"""Whether conversations packed into a row are hidden from each other by restarting positions; tried on the model at hand."""

from __future__ import annotations

from typing import Any

import torch

from opmix.errors import ConfigError

PART = 8
"""Tokens of each of two documents in the row that is tried."""
LEAK_EXACT = 1e-3
"""In float32, where a hidden document changes nothing at all; recurrent layers beside attention (Jamba) let through a hundredth."""
LEAK = 0.1
"""In other precisions: share of what a visible document changes that a hidden one may; rounding of bf16 experts is below."""


def leak(model: Any) -> float:
    """What a document changes in the one behind it though positions restart there, as a share of what it changes where they do not.

    0: the second sees nothing of the first; about 1: packing hides nothing (architectures whose masks ignore positions, recurrent
    layers). Weights, modes and random numbers stay as they are.
    """
    size = model.get_input_embeddings().weight.shape[0]
    ids = 2 + torch.arange(2 * PART, device=model.device) * 7 % max(size - 2, 1)
    other = ids.clone()
    other[:PART] = 2 + (ids[:PART] * 5 + 3) % max(size - 2, 1)
    restarting = torch.arange(PART, device=model.device).repeat(2)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            hidden = _moved(model, ids, other, restarting)
            visible = _moved(model, ids, other, torch.arange(2 * PART, device=model.device))
    finally:
        for module, mode in modes:
            module.training = mode
    return hidden / visible if visible > 0 else 0.0


def _moved(model: Any, ids: torch.Tensor, other: torch.Tensor, positions: torch.Tensor) -> float:
    """Largest change of a logit of the second document."""
    one, two = (
        model(input_ids=row[None], position_ids=positions[None], use_cache=False).logits[0, PART:]
        for row in (ids, other)
    )
    return float((one.float() - two.float()).abs().max())


def check_isolation(model: Any) -> None:
    """Refuse packed rows on a model that lets their documents see each other.

    Raises:
        ConfigError: It does, or it takes no positions.
    """
    kind = getattr(model.config, "model_type", type(model).__name__)
    try:
        share = leak(model)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ConfigError(
            f"model: {kind!r} cannot be tried on a packed row ({error}); set the domains' `chat.packing: false` and "
            "leave "
            "`document_mask` off"
        ) from error
    if share > (LEAK_EXACT if model.dtype == torch.float32 else LEAK):
        raise ConfigError(
            f"model: {kind!r} lets the conversations (or documents, with document_mask) of a packed row see each "
            "other: the first "
            f"changes the second by {share:.2g} of what it would if they were one; set the domains' `chat.packing: "
            "false` and leave "
            "`document_mask` off"
        )
