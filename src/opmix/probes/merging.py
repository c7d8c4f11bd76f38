"""Writing delta weights into resident weights, and taking them out again bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray
from opmix.models.layers import base_model_of, base_modules
from opmix.models.sharded import is_part, is_sharded, laid_out, own_part, reshard
from opmix.probes.adapters import Delta, DeltaSet

_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def why_not_mergeable(model: nn.Module) -> str | None:
    """What keeps the base weights from being written in place; None where nothing does."""
    base = base_model_of(model)
    if getattr(base, "is_quantized", False) or getattr(base, "quantization_method", None) is not None:
        return "its weights are quantised"
    for path, module in base_modules(model):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if weight.is_meta:
            return f"the weight of {path} is offloaded"
        if type(weight.data) is not torch.Tensor and not (is_part(weight) and is_sharded(model)):
            return f"the weight of {path} is sharded or packed ({type(weight.data).__name__})"
        if weight.dtype not in _PLAIN:
            return f"the weight of {path} is {weight.dtype}"
    return None


@dataclass(frozen=True)
class _Place:
    """One adapted parameter: where it sits, what the module holds now, and the base weight."""

    module: nn.Module
    attribute: str
    original: nn.Parameter
    resident: nn.Parameter
    base: torch.Tensor
    """Of a sharded model this rank's part."""

    def restore(self) -> None:
        if self.resident is self.original:
            own_part(self.resident).copy_(self.base)
        else:
            setattr(self.module, self.attribute, self.original)


@contextmanager
def merging(
    model: nn.Module, deltas: DeltaSet, snapshot_device: torch.device | str | None, dtype: torch.dtype | None
) -> Iterator[Callable[[FloatArray], None]]:
    """Hand out `write(weights)`; on leaving, every base weight is bit for bit what it was on entering.

    The snapshot is taken on entering, so weights that were trained in between are never rolled back. Of a sharded model every rank keeps
    and writes its own part, and none waits for another.

    Raises:
        AdapterError: A sharded model ties a weight that is adapted on one side only, or another precision is asked of it.
    """
    if dtype is not None and is_sharded(model):
        raise AdapterError(f"a model in parts on several ranks is evaluated as it is, not in {dtype}; leave dtype out")
    with in_dtype(model, dtype):
        places: dict[str, _Place] = {}
        try:
            with torch.no_grad():
                reshard(model)
                _take(model, deltas.deltas, snapshot_device, places)
            yield lambda weights: _write(model, places, deltas.deltas, weights)
        finally:
            reshard(model)
            try:
                _restore(places)
            except BaseException:  # Ctrl-C in the middle of the copies: start them over, then let it through
                _restore(places)
                raise


def _take(
    model: nn.Module,
    deltas: Mapping[str, Delta],
    device: torch.device | str | None,
    places: dict[str, _Place],
) -> None:
    modules = dict(base_modules(model))
    holders = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    for name in deltas:
        path, _, attribute = name.rpartition(".")
        module = modules[path]
        original = getattr(module, attribute)
        if holders[id(original)] > 1 and is_part(original):
            raise AdapterError(
                f"the weight of {path} is tied to another, which FSDP gathers as one; adapters of one side of it "
                "cannot be merged: leave it out of probes.target_modules"
            )
        if holders[id(original)] > 1:  # tied: this side gets a weight of its own, the other keeps the original
            resident = nn.Parameter(original.detach().clone(), requires_grad=False)
            places[name] = _Place(module, attribute, original, resident, original.detach())
            setattr(module, attribute, resident)
        else:
            base = own_part(original.detach()).to(device or original.device, copy=True)
            places[name] = _Place(module, attribute, original, original, base)


def _write(model: nn.Module, places: Mapping[str, _Place], deltas: Mapping[str, Delta], weights: FloatArray) -> None:
    reshard(model)
    with torch.no_grad(), _exact_products():
        for name, place in places.items():
            own = own_part(place.resident)
            if deltas[name].touched_by(weights):
                own.copy_(_part_of(deltas[name], place.resident).added_to(place.base.to(own.device), weights))
            else:
                own.copy_(place.base)


def _part_of(delta: Delta, weight: torch.Tensor) -> Delta:
    """What a delta changes of this rank's part of a weight."""
    if not is_part(weight):
        return delta
    left, right = laid_out(weight, delta.left.to(weight.device), delta.right.to(weight.device))
    return replace(delta, shape=(left.shape[0], right.shape[1]), left=left, right=right)


def _restore(places: Mapping[str, _Place]) -> None:
    with torch.no_grad():
        for place in places.values():
            place.restore()


@contextmanager
def _exact_products() -> Iterator[None]:
    """Full float32 products, whatever the caller set for training: no TF32, no autocast."""
    before = torch.get_float32_matmul_precision()
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    switched = [(kind, torch.is_autocast_enabled(kind)) for kind in kinds]
    try:
        torch.set_float32_matmul_precision("highest")
        for kind, _ in switched:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind, enabled in switched:
            torch.set_autocast_enabled(kind, enabled)
        torch.set_float32_matmul_precision(before)


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in another precision for a while; afterwards every tensor is the very one it was before.

    The originals are kept beside the converted copies. None or the model's own dtype: nothing happens.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        if dtype is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and tensor.dtype != dtype:
                    kept.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, original in kept:
            tensor.data = original
