"""Saved adapters, read through a weightless model of the base's shape: the base is never touched."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from opmix.errors import AdapterError
from opmix.models.layers import base_modules
from opmix.probes.adapter_rules import check_config

_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save")


def skeleton_with_adapter(base: nn.Module, name: str, folder: Path) -> PeftModel:
    """A weightless copy of `base` (meta tensors) that carries one saved adapter's real factors.

    PEFT itself injects it, so ranks, scales and layer matching are its own. Modules trained in full get the
    base's real parameters beside them, which their difference needs.

    Raises:
        AdapterError: A folder without an adapter, or one that is no adapter of this base.
    """
    config, tensors = _read_folder(name, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's remarks on how the adapter was made: not ours to repeat
        try:
            wrapped = get_peft_model(_skeleton(base), config, adapter_name=name, low_cpu_mem_usage=True)
        except ValueError as error:
            raise AdapterError(f"adapter {name!r} in {folder} does not fit {type(base).__name__}: {error}") from error
        _load(wrapped, name, tensors, str(folder))
    _lend_originals(wrapped, base)
    return wrapped


def _read_folder(name: str, folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    file = folder / "adapter_model.safetensors"
    missing = [path.name for path in (folder / "adapter_config.json", file) if not path.is_file()]
    if missing:
        raise AdapterError(
            f"adapter {name!r}: {folder} has no {' and no '.join(missing)}; expected what PEFT's save_pretrained writes"
        )
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(file)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise AdapterError(f"adapter {name!r} in {folder} cannot be read: {error}") from error
    check_config(config, name)
    # Frozen embeddings that PEFT saves along with adapters on them are the base's own weights.
    return config, {key: tensor for key, tensor in tensors.items() if ".base_layer." not in key}


def _skeleton(base: nn.Module) -> Any:
    if not isinstance(base, PreTrainedModel):
        raise AdapterError(f"the base is a {type(base).__name__}; expected a transformers model")
    with torch.device("meta"):
        return type(base)(copy.deepcopy(base.config))


def _load(wrapped: PeftModel, name: str, tensors: dict[str, torch.Tensor], folder: str) -> None:
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False).items()
    }
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            layer = key.removeprefix("base_model.model.")
            raise AdapterError(
                f"adapter {name!r} in {folder}: layer {layer} is {found.get(key, 'not there')}, "
                "this base model needs "
                f"{expected.get(key, 'no such layer')}; was it trained on another model?"
            )
    for module in wrapped.modules():  # factors get memory, the base stays without
        for kind in _FACTORS:
            if isinstance(getattr(module, kind, None), nn.Module):
                getattr(module, kind).to_empty(device="cpu")
    set_peft_model_state_dict(wrapped, tensors, adapter_name=name)


def _lend_originals(wrapped: PeftModel, base: nn.Module) -> None:
    """Modules trained in full: put the base's own parameters where the weightless originals are."""
    ours = dict(base_modules(base))
    for path, module in wrapped.get_base_model().named_modules():
        if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            module.original_module = ours[path]
