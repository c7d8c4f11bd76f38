"""A model of which every rank holds a part (FSDP2, cut as it is loaded), and what is done with it in another way than with a whole one.

Nothing here changes what a model computes: the sums, products and bytes are those of the whole model, as far as the order of sums allows.
torch's distributed packages are imported only where there are several ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from opmix.compute.budget import world_size
from opmix.errors import ModelError

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=nn.Module)
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_CALL = "_opmix_in_one_call"


def inner_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a `PeftModel`, else the model itself: what is cut is its root."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether the ranks hold parts of the model."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(inner_of(model), FSDPModule)


def loading_sharded(gguf_file: str | None = None) -> dict[str, Any]:
    """What `from_pretrained` is told so that each rank reads its part only.

    Raises:
        ModelError: This transformers cannot do it, or not with a GGUF file.
    """
    if gguf_file is not None:
        raise ModelError(
            f"trainer.fsdp: {gguf_file} is a GGUF file, which is read whole; expected a folder of safetensors, or "
            "no trainer.fsdp"
        )
    try:
        from transformers.distributed import DistributedConfig

        # One that is asked about in one process would be loaded by several.
        return {"distributed_config": DistributedConfig(fsdp_size=max(2, world_size()))}
    except (ImportError, TypeError) as error:
        raise ModelError(
            f"trainer.fsdp: this transformers does not load models in parts ({error}); expected 5.23 or newer: "
            "update it, or leave trainer.fsdp out"
        ) from error


def check_can_be_sharded(model: _Model) -> _Model:
    """Refuse a model, or its likeness without weights, that cannot be loaded in parts.

    Raises:
        ModelError: transformers has no plan for its layers, its weights are quantised, or this transformers is too old.
    """
    loading_sharded()
    kind, config = type(model).__name__, getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"trainer.fsdp: the weights of this {kind} are quantised; expected plain ones: load it without, or leave "
            "trainer.fsdp out"
        )
    layers = {_NUMBER.sub(".*", name) for name, _ in model.named_modules()}
    if not any("*" in rule and rule in layers for rule in getattr(model, "fsdp_plan", None) or ()):
        raise ModelError(
            f"trainer.fsdp: transformers does not say how the layers of {kind} are spread (`_fsdp_plan`); leave "
            "trainer.fsdp out"
        )
    return model


def reshard(model: nn.Module) -> None:
    """Let every rank hold its part only.

    After a forward pass without a backward one, torch leaves the last layers whole: reading then costs memory, and what is written is lost.
    """
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        for module in inner_of(model).modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def is_part(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of which each rank holds a part."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "full_tensor")


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part, sharing memory with it; of a whole tensor all of it."""
    part: torch.Tensor = tensor.to_local() if is_part(tensor) else tensor
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; all ranks ask."""
    full: torch.Tensor = tensor.full_tensor() if is_part(tensor) else tensor
    return full


def laid_out(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `left` (rows, R) and columns of `right` (R, columns) that belong to this rank's part of `weight`; no rank asks another."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    if not isinstance(weight, DTensor):
        return left, right

    def cut(factor: torch.Tensor, dim: int) -> torch.Tensor:
        along = [
            place if place.is_shard(dim) or getattr(place, "dim", None) == dim else Replicate()
            for place in weight.placements
        ]
        # A source rank would send its own to all; every rank has the same factor already.
        part: torch.Tensor = distribute_tensor(factor, weight.device_mesh, along, src_data_rank=None).to_local()
        return part

    return cut(left, 0), cut(right, 1)


def in_one_call(model: nn.Module, work: Callable[[], _T]) -> _T:
    """Do something with the parts of a model as one forward pass of it; of a whole model just do it.

    A sharded model gathers its weights where its own forward begins: a backbone or a head that is called by itself finds a part. All ranks
    call, equally often.
    """
    if not is_sharded(model):
        return work()
    from torch.distributed.fsdp import register_fsdp_forward_method

    inner: Any = inner_of(model)
    if _CALL not in vars(inner):
        setattr(inner, _CALL, MethodType(_called, inner))
        register_fsdp_forward_method(inner, _CALL)
    done: _T = getattr(inner, _CALL)(work)
    return done


def _called(model: nn.Module, work: Callable[[], _T]) -> _T:
    return work()
