"""Gates on adapted layers that change nothing, and whose gradient is the loss's slope along every probe's delta.

A layer computes `y = W x`; with `W(w) = W0 + sum_k w_k L_k R_k` the slope of a loss by `w_k` is `sum_t (L_k' g_t) . (R_k x_t)` over tokens
t, `g = dloss/dy`. So neither `dloss/dW` nor any delta weight is ever formed: two thin products a layer give the slopes of all probes, and
of every sequence of the batch apart, from which their noise is estimated. Parameters that probes trained in full, and layers of unusual
kinds, take the plain road instead: their gradient, once, times each delta.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from opmix.models import base_modules
from opmix.probes.adapters import Delta, DeltaSet


class FlattenedTokensError(Exception):
    """A layer saw tokens without their sequences, as experts do; slopes then need batches of one sequence."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """One adapted layer whose input and output tell the slopes."""

    module: nn.Module
    delta: Delta
    member: torch.Tensor
    """(R, P): which probe each rank belongs to."""

    def slopes(self, inputs: torch.Tensor, gradient: torch.Tensor, rows: int) -> torch.Tensor:
        """(b, P) of inputs (b, T, columns), or ids (b, T) of an embedding, and gradients (b, T, rows)."""
        left, right = self.delta.left, self.delta.right
        gradient = gradient.float()
        if isinstance(self.module, nn.Embedding):
            products = left[inputs] * (gradient @ right.T)
        elif isinstance(self.module, Conv1D):  # its weight is (inputs, outputs)
            products = (inputs.float() @ left) * (gradient @ right.T)
        else:
            products = (gradient @ left) * (inputs.float() @ right.T)
        return products.reshape(rows, -1, left.shape[1]).sum(dim=1) @ self.member


class _Gate(torch.autograd.Function):
    """Identity on a layer's output; its backward also gives the gates (b, P) their gradient."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, gates: torch.Tensor, inputs: torch.Tensor, layer: _Layer) -> Any:
        """Pass `output` on and keep the layer's input."""
        ctx.save_for_backward(inputs)
        ctx.layer, ctx.rows = layer, len(gates)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradient as it is, and this layer's slopes."""
        (inputs,) = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            return gradients[0], ctx.layer.slopes(inputs, gradients[0], ctx.rows), None, None


class Taps:
    """Hooks on a model's adapted layers; made by `tapped`.

    Attributes:
        by_sequence: Whether a batch may hold several sequences.
    """

    def __init__(self, model: nn.Module, deltas: DeltaSet) -> None:
        modules = dict(base_modules(model))
        self._num, self._gates = len(deltas.probes), torch.zeros(0)
        self._layers: list[_Layer] = []
        self._whole: list[tuple[nn.Parameter, Delta]] = []
        for name, delta in deltas.deltas.items():
            path, _, attribute = name.rpartition(".")
            module = modules[path]
            device = getattr(module, attribute).device
            if not delta.full and isinstance(module, nn.Linear | nn.Embedding | Conv1D):
                member = torch.eye(self._num, device=device)[torch.as_tensor(delta.owner, device=device)]
                self._layers.append(_Layer(module, delta.to(device), member))
            else:
                self._whole.append((getattr(module, attribute), delta.to(device)))
        self.by_sequence = not self._whole

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Only what the slopes need is differentiated; flags and hooks are taken back on leaving."""
        handles = [layer.module.register_forward_hook(self._hook(layer)) for layer in self._layers]
        whole = [parameter for parameter, _ in self._whole]
        try:
            for parameter in whole:
                parameter.requires_grad_(True)
                parameter.grad = None
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in whole:
                parameter.requires_grad_(False)
                parameter.grad = None

    def open(self, rows: int, device: torch.device) -> None:
        """Begin a batch of `rows` sequences."""
        self._gates = torch.zeros(rows, self._num, device=device, requires_grad=True)

    def slopes(self) -> torch.Tensor:
        """Slopes of the batch's sequences (b, P), after its backward pass."""
        gates = self._gates
        found = torch.zeros_like(gates) if gates.grad is None else gates.grad
        for parameter, delta in self._whole:
            if parameter.grad is not None:
                found = found + delta.products(parameter.grad, self._num).to(found.device)
                parameter.grad = None
        return found.detach()

    def _hook(self, layer: _Layer) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            rows = len(self._gates)
            expected = 2 if isinstance(module, nn.Embedding) else 3
            if rows > 1 and (inputs[0].dim() != expected or inputs[0].shape[0] != rows):
                raise FlattenedTokensError
            gates = self._gates.to(output.device)
            found: torch.Tensor = _Gate.apply(output, gates, inputs[0], layer)
            return found

        return hook
