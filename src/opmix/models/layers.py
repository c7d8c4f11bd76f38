"""What a model is made of: its layers by name, which of them LoRA may touch, its sizes and identity.

Everything here works on a bare model and on one that carries PEFT adapters: `base_modules` looks through the adapters, so names are
always those of the base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
from torch import nn
from transformers.pytorch_utils import Conv1D

from opmix.compute.flops import ModelShape
from opmix.errors import ModelError
from opmix.models.sharded import inner_of, reshard, whole
from opmix.runs.trace import span

_HASH_CHUNK = 1 << 24
"""Elements hashed at a time: bounds the copy that leaves the accelerator."""

_WRAPPERS = ("base_layer", "original_module")
"""Attribute under which PEFT keeps the module of the base model that it wraps."""


def base_model_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a `PeftModel`, its layers still wrapped; else `model` itself."""
    return inner_of(model)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the base model under the base model's own names, looking through PEFT's wrappers."""
    for path, module in base_model_of(model).named_modules():
        parts = path.split(".")
        if any(part == "modules_to_save" or part.startswith("lora_") for part in parts):
            continue
        if any(isinstance(getattr(module, wrapper, None), nn.Module) for wrapper in _WRAPPERS):
            continue  # the wrapper; what it wraps comes under the same name
        yield ".".join(part for part in parts if part not in _WRAPPERS), module


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the base model under its own names, each tied parameter once, under its first name."""
    seen: set[int] = set()
    for path, module in base_modules(model):
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{attribute}" if path else attribute, parameter


def adapter_parameters(model: nn.Module, rank: int, targets: Sequence[str] | None = None) -> int:
    """Return the weights of a LoRA adapter, `rank * (in + out)` a layer.

    Args:
        model: The base model.
        rank: Of the adapter.
        targets: Names of layers, or ends of them; none: `lora_targets`.
    """
    wanted = targets or lora_targets(model)
    return sum(
        rank * sum(module.weight.shape)
        for path, module in base_modules(model)
        if any(path == name or path.endswith("." + name) for name in wanted) and hasattr(module, "weight")
    )


def lora_targets(model: nn.Module) -> list[str]:
    """Names for `LoraConfig.target_modules`: all linear layers but the LM head and MoE routers.

    Short names (`"q_proj"`) where PEFT's matching by suffix finds exactly these layers, full names otherwise.

    Raises:
        ModelError: The model has no such layer.
    """
    modules = dict(base_modules(model))
    heads = _head_modules(model)
    targets = {name for name, module in modules.items() if _is_linear(module)}
    targets = {name for name in targets if modules[name] not in heads and not _is_router(name, modules)}
    targets -= {name for name in targets if _is_refused_by_peft(name, base_model_of(model))}
    if not targets:
        raise ModelError(
            f"{type(base_model_of(model)).__name__} has no linear layer besides its LM head; expected "
            "torch.nn.Linear or transformers' Conv1D layers; give target_modules yourself"
        )
    short = {name.rpartition(".")[2] for name in targets}
    ambiguous = {last for last in short if any(n.rpartition(".")[2] == last and n not in targets for n in modules)}
    full = {name for name in targets if name.rpartition(".")[2] in ambiguous}
    return sorted((short - ambiguous) | full)


def reached_share(model: nn.Module, targets: Sequence[str] | None = None, in_full: Sequence[str] = ()) -> float:
    """Share of the model's parameters that probes can move, in [0, 1].

    Args:
        model: The base model, on any device.
        targets: Names of layers with adapters; None: `lora_targets`.
        in_full: Names of modules that are trained in full beside them.
    """
    names, reached, total = [*(targets or lora_targets(model)), *in_full], set(), 0
    for path, module in base_modules(model):
        if any(path == name or path.endswith(f".{name}") for name in names):
            reached |= {id(parameter) for parameter in module.parameters()}
    moved = 0
    for _, parameter in base_parameters(model):
        total += _numel(parameter)
        moved += _numel(parameter) if id(parameter) in reached else 0
    return moved / max(total, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """How many parameters a model has, split as FLOP formulas need them; `total` counts tied ones once."""

    total: int
    embedding: int
    """Token and position embeddings."""
    linear: int
    """Weights of linear layers that every token passes, LM head excluded."""
    experts: int
    """Fused mixture-of-experts weights (three dimensions), all experts."""
    active_experts: int
    """Share of `experts` that one token passes."""
    head: int
    """Size of the LM head's matrix product, also when its weight is tied to the embedding."""


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the base model's parameters; adapters are left out."""
    heads = _head_modules(model)
    embedding = linear = experts = 0
    seen: set[int] = set()
    for _, module in base_modules(model):
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Embedding):
                embedding += _numel(parameter)
            elif _is_linear(module) and module not in heads and parameter.ndim == 2:
                linear += _numel(parameter)
            elif parameter.ndim == 3:
                experts += _numel(parameter)
    config = getattr(base_model_of(model), "config", None)
    per_token = getattr(config, "num_experts_per_tok", None)
    available = num_experts(config)
    share = per_token / available if per_token and available else 1.0
    return ParameterCounts(
        total=sum(_numel(parameter) for _, parameter in base_parameters(model)),
        embedding=embedding,
        linear=linear,
        experts=experts,
        active_experts=round(experts * share),
        head=sum(_numel(head.weight) for head in heads),
    )


@span("fingerprint of a model", "fingerprints")
def model_fingerprint(model: nn.Module) -> str:
    """Hash of the base model's parameters: names, dtypes, shapes and bytes, in a fixed order.

    The same with and without adapters on it, on every device, and in parts on several ranks, which all must ask.
    """
    reshard(model)
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(base_parameters(model), key=lambda item: item[0]):
        digest.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        flat = whole(parameter.detach()).reshape(-1)
        for start in range(0, flat.numel(), _HASH_CHUNK):
            chunk = flat[start : start + _HASH_CHUNK].contiguous().view(torch.uint8).cpu()
            digest.update(memoryview(chunk.numpy()))
    return digest.hexdigest()


def model_shape(model: nn.Module) -> ModelShape:
    """What the FLOP count needs to know; of a mixture of experts only the experts that one token passes.

    Models without attention (state spaces, recurrences) have an attention width of 0: their scans cost little beside their products.
    """
    counts = parameter_counts(model)
    config = base_model_of(model).config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) and heads > 0 else 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return ModelShape(
        matmul_parameters=counts.linear + counts.active_experts + counts.head,
        num_layers=int(getattr(config, "num_hidden_layers", 0)),
        attention_width=heads * head_size if isinstance(head_size, int) else 0,
        head_parameters=counts.head,
    )


_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


def num_experts(config: Any) -> int | None:
    """Experts of a layer that tokens are routed to; None: there are none."""
    return next((int(n) for key in _EXPERT_COUNTS if (n := getattr(config, key, None))), None)


_STATE_SPACES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
"""Model types whose `out_proj` PEFT refuses: their kernels read its weight without calling the layer."""


def _is_refused_by_peft(name: str, base: Any) -> bool:
    """Whether PEFT would refuse a layer by its last name, or put the adapter on fused expert weights instead of it."""
    last, kind = name.rpartition(".")[2], getattr(getattr(base, "config", None), "model_type", None)
    if kind in _STATE_SPACES and last == "out_proj":
        return True
    wanted = LoraConfig(target_modules=[last])
    try:
        convert(wanted, base, None)
    except ValueError:  # one of several layers that are fused: all or none
        return True
    return bool(getattr(wanted, "target_parameters", None))


def _numel(parameter: nn.Parameter) -> int:
    # bitsandbytes packs two 4-bit weights into a byte and remembers the real shape here.
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _head_modules(model: nn.Module) -> list[nn.Module]:
    """The LM head, and any linear layer that shares the token embedding's weight."""
    base = base_model_of(model)
    found = [base.get_output_embeddings()] if hasattr(base, "get_output_embeddings") else []
    modules = list(base_modules(model))
    embeddings = {id(module.weight) for _, module in modules if isinstance(module, nn.Embedding)}
    for path, module in modules:
        wrapped = any(getattr(head, wrapper, None) is module for head in found for wrapper in _WRAPPERS)
        tied = _is_linear(module) and id(module.weight) in embeddings
        if (wrapped or tied or path in ("lm_head", "embed_out")) and module not in found:
            found.append(module)
    return [head for head in found if head is not None and _is_linear(head)]


def _is_router(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a linear layer chooses experts: one output per expert, beside a module that holds experts."""
    parent, _, last = name.rpartition(".")
    if last == "router" or last.endswith("_router") or ".router." in f".{parent}.":
        return True
    return last in ("gate", "shared_expert_gate", "classifier") and f"{parent}.experts" in modules
