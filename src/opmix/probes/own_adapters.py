"""Somebody's own adapters while a search runs: part of the base that probes are trained on, given back untouched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from opmix.errors import ModelError
from opmix.probes.preserve_state import check_not_repacked, preserve_model_state

_UNPACKED = ("Params4bit", "Int8Params")
"""Weights of bitsandbytes, by their class."""


def carries_adapters(model: Any) -> bool:
    """Whether a model is a `PeftModel` or has layers of PEFT's inside."""
    if isinstance(model, PeftModel):
        return True
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return isinstance(model, nn.Module) and any(isinstance(module, kinds) for module in model.modules())


@contextmanager
def adapters_in_base(model: Any) -> Iterator[Any]:
    """The plain transformers model with the active adapters' deltas in its weights; afterwards all is as before, bit for bit.

    The weights that adapters change are kept beside (one copy of them) and copied back, never subtracted: rounding would not come
    back. Modules trained in full (`modules_to_save`) take their originals' places meanwhile. A model without adapters is returned as
    it is. Quantised layers that adapters lie on (QLoRA) stay as they are: plain layers of the adapters' precision take their places
    meanwhile, with the weights unpacked, which takes their memory.

    Raises:
        ModelError: Adapters that are no weights (prompts, activations), or quantised weights that cannot be unpacked exactly.
    """
    model = getattr(model, "_orig_mod", model)
    if not carries_adapters(model):
        yield model
        return
    plain = _inside(model)
    _check(model, plain)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    with preserve_model_state(plain):
        try:
            with torch.no_grad():
                _merge(plain, kept)
            for parameter in plain.parameters():  # PEFT froze the base; what probes train is their own affair
                parameter.requires_grad_(parameter.is_floating_point())
            yield plain
        finally:
            with torch.no_grad():
                for weight, values in kept:
                    weight.copy_(values)


def _inside(model: Any) -> PreTrainedModel:
    found = model.base_model if isinstance(model, PeftModel) else model
    found = found.model if isinstance(found, BaseTuner) else found
    if not isinstance(found, PreTrainedModel):
        raise ModelError(f"the adapters are on a {type(found).__name__}; expected a transformers causal language model")
    return found


def _check(model: Any, plain: PreTrainedModel) -> None:
    kind = model.peft_config[model.active_adapter].peft_type.value if isinstance(model, PeftModel) else "adapters"
    if not any(isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in plain.modules()):
        raise ModelError(
            f"the model carries {kind}, which change no weights; probes are trained on a model's weights: pass the "
            "base model, or train adapters such as LoRA"
        )
    check_not_repacked(plain)
    for name, layer in plain.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if _is_packed(layer.get_base_layer()) and (why := _why_not_unpacked(layer)):
            raise ModelError(
                f"{name}: the adapters lie on quantised weights, and {why}; load the base in bfloat16 for the search, "
                "or pass the base model without adapters"
            )


def _is_packed(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.element_size() < 2


def _why_not_unpacked(layer: Any) -> str | None:
    """What keeps a quantised layer and its adapters from being written as one plain layer; None where nothing does."""
    kind = type(getattr(layer.get_base_layer(), "weight", None)).__name__
    if kind not in _UNPACKED or not isinstance(layer, LoraLayer):
        return f"{kind} is no kind that can be unpacked (bitsandbytes' 4 and 8 bits can, under LoRA)"
    if layer.lora_variant or any(layer.lora_bias.values()):
        return "the adapters are more than products of two matrices (DoRA, biases)"
    return "they are merged already: unmerge them" if layer.merged else None


def _unpacked(layer: Any) -> nn.Linear:
    """A plain layer in the place of a quantised one, with what the active adapters learned; the quantised one is not touched."""
    base, active = layer.get_base_layer(), [] if layer.disable_adapters else layer.active_adapters
    active = [name for name in active if name in layer.lora_A]
    held = base.weight
    weight = dequantize_module_weight(base).to(layer.lora_A[active[0]].weight.dtype if active else torch.float32)
    base.weight = held  # PEFT puts a copy in its place
    for name in active:
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.detach())
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach().clone())
    return plain


def _merge(plain: PreTrainedModel, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Put what the active adapters learned into the weights, and the plain modules into the places of PEFT's."""
    for name, layer in list(plain.named_modules()):
        if not isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        parent, _, last = name.rpartition(".")
        place = plain.get_submodule(parent)
        if isinstance(layer, AuxiliaryTrainingWrapper):
            setattr(place, last, _trained_in_full(layer, name))
            continue
        base = layer.get_base_layer()
        if _is_packed(base):
            setattr(place, last, _unpacked(layer))
            continue
        if not layer.disable_adapters and not layer.merged:
            kept += [(p, p.detach().clone()) for p in base.parameters(recurse=False)]
            layer.merge()
        setattr(place, last, base)


def _trained_in_full(layer: Any, name: str) -> nn.Module:
    saved = getattr(layer, "modules_to_save", None)
    if saved is None:
        raise ModelError(
            f"{name}: {type(layer).__name__} has no plain module to search on; pass `model.merge_and_unload()` instead"
        )
    active = next((a for a in layer.active_adapters if a in saved), None)
    module: nn.Module = layer.original_module if active is None or layer.disable_adapters else saved[active]
    return module
