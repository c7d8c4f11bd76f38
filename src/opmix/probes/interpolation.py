"""A proxy is the current model with `sum_k w_k dW_k` added: in memory, exactly, and gone without a trace.

Two back ends behind one seam that agree to rounding:

    MergeProxies   writes W0 + sum_k w_k dW_k into the resident weights (float32 sum, one cast) and copies W0 back: the
                   forward pass costs what the plain model's does
    ScaleProxies   keeps all adapters active and sets their scales: for quantised or sharded weights

Adding and then subtracting is never done: in bf16 it drifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.models import base_parameters
from opmix.probes.adapters import DeltaSet

Backend = Literal["auto", "merge", "scale"]


class Proxies(Protocol):
    """Simulated models, one at a time."""

    probes: tuple[str, ...]

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[torch.nn.Module]:
        """The model at these weights, until the context is left."""

    def at_vector(self, weights: FloatArray) -> AbstractContextManager[torch.nn.Module]:
        """The same for any vector (P,), on the simplex or not; zero is the base model."""


def make_proxies(model: PeftModel, names: list[str], *, backend: Backend = "auto") -> Proxies:
    """Proxies over adapters loaded in a `PeftModel`; `auto`: merge into plain floating-point weights, else scale."""
    plain = all(p.is_floating_point() and type(p.data) is torch.Tensor for _, p in base_parameters(model))
    quantised = getattr(model.base_model.model, "is_quantized", False)
    if backend == "scale" or (backend == "auto" and (quantised or not plain)):
        return ScaleProxies(model, names)
    return MergeProxies(model, DeltaSet.from_peft(model, names))


def _vector(probes: tuple[str, ...], weights: InterpolationWeights) -> FloatArray:
    if not isinstance(weights, InterpolationWeights):
        raise TypeError(f"a proxy takes InterpolationWeights over probes, not {type(weights).__name__}")
    if weights.names != probes:
        raise AdapterError(f"weights are over probes {weights.names}; loaded are {probes}")
    return weights.weights


class MergeProxies:
    """Write the sum of delta weights into the resident base weights.

    Tied weights are one parameter: a delta on a tied input embedding also moves the output head, as training it does.

    Args:
        model: The base model, or a `PeftModel` on it (whose adapters are switched off inside a proxy).
        deltas: Delta weights of the probes.
    """

    def __init__(self, model: torch.nn.Module, deltas: DeltaSet) -> None:
        self.probes = deltas.probes
        self._model = model
        self._deltas = deltas
        parameters = dict(base_parameters(model))
        missing = [name for name in deltas.deltas if name not in parameters]
        if missing:
            raise AdapterError(
                f"the model has no parameter {missing[0]!r}; the adapters belong to another architecture"
            )
        self._targets = {name: parameters[name] for name in deltas.deltas}
        for name, target in self._targets.items():
            shape = DeltaSet.shape(next(d for d in deltas.deltas[name] if d is not None))
            if tuple(target.shape) != shape:
                raise AdapterError(
                    f"parameter {name!r} is {tuple(target.shape)}, its delta {shape}; the adapters belong to another model"
                )
        self._entered = False

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[torch.nn.Module]:
        """See `Proxies`."""
        return self.at_vector(_vector(self.probes, weights))

    @contextmanager
    def at_vector(self, weights: FloatArray) -> Iterator[torch.nn.Module]:
        """See `Proxies`."""
        if self._entered:
            raise AdapterError("already inside a proxy; leave it before entering another")
        snapshot = {name: target.detach().clone() for name, target in self._targets.items()}
        self._entered = True
        try:
            with torch.no_grad():
                if np.any(weights != 0):
                    for name, target in self._targets.items():
                        merged = snapshot[name].float() + self._deltas.delta(name, weights).to(target.device)
                        target.copy_(merged)
            with self._without_adapters():
                yield self._model
        finally:
            with torch.no_grad():
                for name, target in self._targets.items():
                    target.copy_(snapshot[name])
            self._entered = False

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        if isinstance(self._model, PeftModel):
            with self._model.disable_adapter():
                yield
        else:
            yield


class ScaleProxies:
    """Keep all adapters active and set their scales; nothing is written into the base weights.

    Raises:
        AdapterError: Modules trained in full (`modules_to_save`): they have no scale.
    """

    def __init__(self, model: PeftModel, names: list[str]) -> None:
        from opmix.probes.adapters import check_config

        for name in names:
            check_config(model.peft_config.get(name), name)
            if model.peft_config[name].modules_to_save:
                raise AdapterError(
                    f"adapter {name!r} trains {model.peft_config[name].modules_to_save} in full; use proxies.backend=merge"
                )
        self.probes = tuple(names)
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        self._entered = False

    def at(self, weights: InterpolationWeights) -> AbstractContextManager[torch.nn.Module]:
        """See `Proxies`."""
        return self.at_vector(_vector(self.probes, weights))

    @contextmanager
    def at_vector(self, weights: FloatArray) -> Iterator[torch.nn.Module]:
        """See `Proxies`."""
        if self._entered:
            raise AdapterError("already inside a proxy; leave it before entering another")
        tuner = self._model.base_model
        active = list(tuner.active_adapters)
        scales = [dict(layer.scaling) for layer in self._layers]
        trainable = {name: p.requires_grad for name, p in self._model.named_parameters()}
        self._entered = True
        try:
            tuner.set_adapter(list(self.probes))
            for layer in self._layers:
                for name, weight in zip(self.probes, weights, strict=True):
                    if name in layer.scaling:
                        layer.set_scale(name, float(weight))
            yield self._model
        finally:
            for layer, scale in zip(self._layers, scales, strict=True):
                layer.scaling.update(scale)
            tuner.set_adapter(active)
            for name, parameter in self._model.named_parameters():
                parameter.requires_grad_(trainable[name])
            self._entered = False
