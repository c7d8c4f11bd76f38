"""A proxy is the current model with `sum_k w_k dW_k` added: in memory, exactly, and gone without a trace.

Two back ends behind one seam that agree to rounding:

    MergeProxies   writes W0 + sum_k w_k dW_k into the resident weights (float32 sum, one cast) and copies W0
    back: the
                   forward pass costs what the plain model's does
    ScaleProxies   keeps all adapters active and sets their scales: for quantised or sharded weights

Both compute what PEFT's own forward pass computes with the adapters active. Adding and then subtracting is
never done:
in bf16 it drifts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol
from weakref import WeakSet

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.models.layers import base_model_of, base_modules
from opmix.probes.adapter_rules import check_config
from opmix.probes.adapters import DeltaSet
from opmix.probes.merging import merging, why_not_mergeable
from opmix.probes.peft_state import adapters_off, adapters_restored

Backend = Literal["auto", "merge", "scale"]

_ENTERED: WeakSet[nn.Module] = WeakSet()
"""Models whose weights or scales are a proxy's at the moment; two `Proxies` may share one model."""


class Proxies(Protocol):
    """Simulated models, one at a time."""

    probes: tuple[str, ...]

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[nn.Module]:
        """The model at these weights, until the context is left."""

    def at_vector(self, weights: FloatArray) -> AbstractContextManager[nn.Module]:
        """The same for any vector (P,), on the simplex or not; zero is the base model."""

    def sweep(self, points: Iterable[InterpolationWeights]) -> AbstractContextManager[Iterator[nn.Module]]:
        """One model after another; the base comes back once, when the context is left."""


def make_proxies(
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    deltas: DeltaSet | None = None,
    backend: Backend = "auto",
    snapshot_device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Proxies:
    """Proxies over adapters loaded in `model` (`names`), or over `deltas` of a base model.

    Args:
        model: The base model, bare or inside a `PeftModel`.
        names: Adapters loaded in `model`.
        deltas: Delta weights read before; only the merge back end takes them.
        backend: `"auto"` merges into plain floating-point weights and scales otherwise.
        snapshot_device: Where a merge keeps the base weights meanwhile; None: beside them.
        dtype: Precision to merge and evaluate in, such as float32 for a bf16 model; None: the model's own.

    Raises:
        AdapterError: The adapters cannot be interpolated exactly, or not by this back end.
    """
    if (names is None) == (deltas is None):
        raise AdapterError("make_proxies takes either the names of loaded adapters or deltas; give one of them")
    obstacle = why_not_mergeable(model)
    if backend == "scale" or (backend == "auto" and obstacle is not None):
        if names is None:
            raise AdapterError(
                f"the scale back end (chosen: {obstacle or 'as asked'}) needs adapters loaded in the model; "
                "load them with PeftModel.load_adapter and give their names"
            )
        return ScaleProxies(model, names)
    if deltas is None:
        deltas = DeltaSet.from_peft(model, names or ())
    return MergeProxies(model, deltas, snapshot_device=snapshot_device, dtype=dtype)


class MergeProxies:
    """Write the sum of delta weights into the resident base weights.

    Where tied weights are adapted on one side, that side gets a weight of its own while a proxy is entered:
    PEFT's
    forward pass, which the probe was trained with, changes one side too (its `merge_and_unload` changes
    both).

    Args:
        model: The base model, or one that carries adapters (they are switched off inside a proxy).
        deltas: Delta weights of the probes.
        snapshot_device: Where the base weights are kept meanwhile; None: beside them.
        dtype: Precision to merge and evaluate in; None: the model's own.

    Raises:
        AdapterError: The model's weights cannot be written, or are not those the deltas belong to.
    """

    def __init__(
        self,
        model: nn.Module,
        deltas: DeltaSet,
        *,
        snapshot_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        obstacle = why_not_mergeable(model)
        if obstacle is not None:
            raise AdapterError(f"cannot merge into this model: {obstacle}; use proxies.backend=scale")
        self.probes = deltas.probes
        self._model = base_model_of(model)
        self._deltas = deltas
        self._snapshot_device = snapshot_device
        self._dtype = dtype
        modules = dict(base_modules(model))
        for name, delta in deltas.deltas.items():
            path, _, attribute = name.rpartition(".")
            weight = getattr(modules.get(path), attribute, None)
            if weight is None or tuple(weight.shape) != delta.shape:
                there = "nothing of that name" if weight is None else f"a weight of {tuple(weight.shape)}"
                raise AdapterError(
                    f"layer {name} has a delta of {delta.shape}, the model {there}; "
                    "expected the base model that the adapters were trained on"
                )

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[nn.Module]:
        """See `Proxies`."""
        return self.at_vector(_vector(self.probes, weights))

    @contextmanager
    def at_vector(self, weights: FloatArray) -> Iterator[nn.Module]:
        """See `Proxies`."""
        with self._entered() as write:
            write(weights)
            yield self._model

    @contextmanager
    def sweep(self, points: Iterable[InterpolationWeights]) -> Iterator[Iterator[nn.Module]]:
        """See `Proxies`."""
        with self._entered() as write:
            yield self._each(points, write)

    def _each(self, points: Iterable[InterpolationWeights], write: Callable[[FloatArray], None]) -> Iterator[nn.Module]:
        for weights in points:
            write(_vector(self.probes, weights))
            yield self._model

    @contextmanager
    def _entered(self) -> Iterator[Callable[[FloatArray], None]]:
        with (
            _alone(self._model),
            adapters_restored(self._model),
            merging(self._model, self._deltas, self._snapshot_device, self._dtype) as write,
        ):
            adapters_off(self._model)
            yield lambda weights: write(_checked(self.probes, weights))


class ScaleProxies:
    """Keep all adapters active and set their scales; nothing is written into the base weights.

    Raises:
        AdapterError: Modules trained in full (`modules_to_save`): they have no scale.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        configs: dict[str, Any] = getattr(model, "peft_config", {})
        for name in names:
            check_config(configs.get(name), name)
            if configs[name].modules_to_save:
                raise AdapterError(
                    f"adapter {name!r} trains {configs[name].modules_to_save} in full: "
                    "the scale back end cannot weigh that; use proxies.backend=merge"
                )
        self.probes = tuple(names)
        self._model = model
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[nn.Module]:
        """See `Proxies`."""
        return self.at_vector(_vector(self.probes, weights))

    @contextmanager
    def at_vector(self, weights: FloatArray) -> Iterator[nn.Module]:
        """See `Proxies`."""
        with self._entered():
            self._set(weights)
            yield self._model

    @contextmanager
    def sweep(self, points: Iterable[InterpolationWeights]) -> Iterator[Iterator[nn.Module]]:
        """See `Proxies`."""
        with self._entered():
            yield self._each(points)

    def _each(self, points: Iterable[InterpolationWeights]) -> Iterator[nn.Module]:
        for weights in points:
            self._set(_vector(self.probes, weights))
            yield self._model

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with _alone(base_model_of(self._model)), adapters_restored(self._model):
            for layer in self._layers:
                layer.enable_adapters(True)
                layer.set_adapter([name for name in self.probes if name in layer.scaling], inference_mode=True)
            yield

    def _set(self, weights: FloatArray) -> None:
        for name, weight in zip(self.probes, _checked(self.probes, weights), strict=True):
            for layer in self._layers:
                layer.set_scale(name, float(weight))


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    if model in _ENTERED:
        raise AdapterError("this model is inside a proxy already; leave it before entering another")
    _ENTERED.add(model)
    try:
        yield
    finally:
        _ENTERED.discard(model)


def _vector(probes: tuple[str, ...], weights: InterpolationWeights) -> FloatArray:
    if not isinstance(weights, InterpolationWeights):
        raise TypeError(f"a proxy takes InterpolationWeights over probes, not {type(weights).__name__}")
    if weights.names != probes:
        raise AdapterError(f"weights are over probes {weights.names}; these proxies are over {probes}")
    return weights.weights


def _checked(probes: tuple[str, ...], weights: FloatArray) -> FloatArray:
    vector = np.asarray(weights, dtype=np.float64)
    if vector.shape != (len(probes),) or not np.all(np.isfinite(vector)):
        raise AdapterError(f"weights are {vector}; expected {len(probes)} finite numbers, one per probe {probes}")
    return vector
