"""Adapters as delta weights: read PEFT's factors, never PEFT's merging.

The delta of one adapted weight is `dW = s B A` with `s = alpha / r` (or `alpha / sqrt(r)` under rsLoRA); a
mixture of
probes is `sum_k w_k s_k B_k A_k`. Stacked as `(B diag(w s)) A` this is one matrix product of inner size
`sum_k r_k`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray
from opmix.models.layers import base_model_of
from opmix.probes.adapter_rules import check_config, check_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta:
    """Change of one parameter under P probes, linear in their weights, float32, laid out as the parameter is.

    Low rank: `left[:, owner == k] @ right[owner == k]` is probe k's, with its scale inside `left`. A probe
    that trained
    the parameter in full has its difference to the base in `full`. One that left it alone is in neither.
    """

    shape: tuple[int, ...]
    left: torch.Tensor
    """(rows, R)."""
    right: torch.Tensor
    """(R, columns)."""
    owner: npt.NDArray[np.int64]
    """(R,): which probe each rank belongs to."""
    full: Mapping[int, torch.Tensor]

    def touched_by(self, weights: FloatArray) -> bool:
        """Whether these weights change the parameter at all."""
        return bool(np.any(weights[self.owner] != 0) or any(weights[probe] != 0 for probe in self.full))

    def added_to(self, base: torch.Tensor, weights: FloatArray) -> torch.Tensor:
        """`base + sum_k w_k dW_k`, a new float32 tensor on the base's device."""
        result = base.float() if base.dtype != torch.float32 else base.clone()
        if len(self.owner):
            columns = torch.as_tensor(weights[self.owner], dtype=torch.float32, device=self.left.device)
            left, right = (self.left * columns).to(result.device), self.right.to(result.device)
            result.addmm_(left, right)
        for probe, difference in self.full.items():
            if weights[probe] != 0:
                result.add_(difference.to(result.device), alpha=float(weights[probe]))
        return result

    def gram(self, num: int) -> FloatArray:
        """Inner products of the probes' deltas, (num, num), without forming those of low rank."""
        gram = np.zeros((num, num))
        left, right = self.left.double(), self.right.double()
        if len(self.owner):
            # <L_i R_i, L_j R_j> = sum((L_i' L_j) * (R_i R_j')): per rank, then per probe.
            ranks = ((left.T @ left) * (right @ right.T)).cpu().numpy()
            member = np.eye(num)[self.owner]
            gram += member.T @ ranks @ member
        full = {probe: difference.double() for probe, difference in self.full.items()}
        for i, one in full.items():
            for j, other in full.items():
                gram[i, j] += float((one * other).sum())
            if len(self.owner):
                cross = member.T @ ((left.T @ one) * right).sum(dim=1).cpu().numpy()
                gram[i] += cross
                gram[:, i] += cross
        return gram

    def to(self, device: torch.device | str) -> Delta:
        """The same on another device."""
        full = {probe: difference.to(device) for probe, difference in self.full.items()}
        left, right = self.left.to(device), self.right.to(device)
        return Delta(shape=self.shape, left=left, right=right, owner=self.owner, full=full)


@dataclass(frozen=True, eq=False)
class DeltaSet:
    """Delta weights of P probes over the parameters of one base model.

    A name is a *place* (`lm_head.weight`), not a tensor: tied weights that PEFT adapts on one side only stay
    changed on
    that side only, as in PEFT's own forward pass.
    """

    probes: tuple[str, ...]
    deltas: Mapping[str, Delta]

    @classmethod
    def from_peft(cls, model: nn.Module, names: Sequence[str], *, device: torch.device | str | None = None) -> DeltaSet:
        """Read adapters that are loaded in a model.

        Args:
            model: A `PeftModel`, or any model that carries PEFT layers.
            names: Adapters, in the order of the weights to come.
            device: Where to keep the factors; None: beside the layers.

        Raises:
            AdapterError: An adapter does not exist, is not linear in its weight, does not fit its layer, or
            changes
                nothing.
        """
        configs = getattr(model, "peft_config", {})
        for name in names:
            check_config(configs.get(name), name)
        deltas = dict(_read(base_model_of(model), names))
        for number, name in enumerate(names):
            if not any(number in delta.owner or number in delta.full for delta in deltas.values()):
                raise AdapterError(
                    f"adapter {name!r} changes no weight of the model; expected LoRA factors "
                    "in at least one layer; was it trained for this model?"
                )
        if device is not None:
            deltas = {name: delta.to(device) for name, delta in deltas.items()}
        return cls(tuple(names), deltas)

    @classmethod
    def from_folders(
        cls, model: nn.Module, folders: Mapping[str, str | Path], *, device: torch.device | str | None = None
    ) -> DeltaSet:
        """Read saved PEFT adapters (safetensors) of a base model; the model is neither wrapped nor changed.

        Raises:
            AdapterError: As `from_peft`, or a folder that holds no adapter of this model: names the layer
            and both
                shapes.
        """
        from opmix.probes.adapter_files import skeleton_with_adapter

        base = base_model_of(model)
        parts: dict[str, dict[int, Delta]] = {}
        for number, (name, folder) in enumerate(folders.items()):
            skeleton = skeleton_with_adapter(base, name, Path(folder))
            for place, delta in cls.from_peft(skeleton, [name], device=device).deltas.items():
                parts.setdefault(place, {})[number] = delta
        return cls(tuple(folders), {place: _joined(found) for place, found in parts.items()})

    def delta(self, parameter: str, weights: FloatArray) -> torch.Tensor:
        """`sum_k w_k dW_k` of one parameter, float32."""
        delta = self.deltas[parameter]
        device = delta.left.device if len(delta.owner) else next(iter(delta.full.values())).device
        return delta.added_to(torch.zeros(delta.shape, device=device), np.asarray(weights, dtype=np.float64))

    @classmethod
    def from_differences(
        cls, probes: Sequence[str], places: Mapping[str, str], changes: Sequence[Mapping[str, torch.Tensor]]
    ) -> DeltaSet:
        """Deltas of probes that trained parameters in full.

        Args:
            probes: Names, in the order of the weights to come.
            places: Where a parameter sits in the model, and its name in `changes`.
            changes: Of each probe, float32 differences to the base by parameter.
        """
        full = {
            place: {number: change[name] for number, change in enumerate(changes)} for place, name in places.items()
        }
        return cls(tuple(probes), {place: _delta(tuple(of[0].shape), {}, of) for place, of in full.items()})

    def gram(self) -> FloatArray:
        """Inner products `<dW_i, dW_j>` over all parameters, (P, P) float64, through the factors."""
        num = len(self.probes)
        return np.sum([delta.gram(num) for delta in self.deltas.values()], axis=0)


def _joined(found: Mapping[int, Delta]) -> Delta:
    """One delta of several probes from the deltas that each has alone."""
    low = {number: (delta.left, delta.right) for number, delta in found.items() if len(delta.owner)}
    full = {number: difference for number, delta in found.items() for difference in delta.full.values()}
    return _delta(next(iter(found.values())).shape, low, full)


def _read(inner: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, Delta]]:
    for path, module in inner.named_modules():
        place = ".".join(part for part in path.split(".") if part not in ("base_layer", "original_module"))
        if isinstance(module, LoraLayer):
            found = {number: _factors(module, name, place) for number, name in enumerate(names)}
            factors = {number: pair for number, pair in found.items() if pair is not None}
            if factors:
                shape = _base_shape(module)
                yield f"{place}.weight", _delta(shape, factors, {})
        elif isinstance(module, ModulesToSaveWrapper):
            for name, full, shape in _differences(module, names):
                yield f"{place}.{name}", _delta(shape, {}, full)


def _delta(
    shape: tuple[int, ...],
    low: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
    full: Mapping[int, torch.Tensor],
) -> Delta:
    owners = [np.full(right.shape[0], number, dtype=np.int64) for number, (_, right) in low.items()]
    return Delta(
        shape=shape,
        left=torch.cat([left for left, _ in low.values()], dim=1) if low else torch.zeros(0, 0),
        right=torch.cat([right for _, right in low.values()]) if low else torch.zeros(0, 0),
        owner=np.concatenate(owners) if owners else np.zeros(0, dtype=np.int64),
        full=full,
    )


def _base_shape(module: LoraLayer) -> tuple[int, ...]:
    weight = module.get_base_layer().weight
    packed = getattr(weight, "quant_state", None)  # bitsandbytes keeps the real shape beside the packed bytes
    return tuple(weight.shape if packed is None else packed.shape)


def _factors(module: Any, name: str, place: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """One adapter's factors in the layout of the layer's weight, its scale inside the left one."""
    transposed = bool(getattr(module, "fan_in_fan_out", False))
    if name in module.lora_A:
        check_layer(module, name, place)
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
    elif name in module.lora_embedding_A:
        check_layer(module, name, place)
        down, up, transposed = module.lora_embedding_A[name], module.lora_embedding_B[name], True
    else:
        return None
    down, up = down.detach().float(), up.detach().float() * float(module.scaling[name])
    left, right = (down.T.contiguous(), up.T.contiguous()) if transposed else (up, down.clone())
    shape, base = (left.shape[0], right.shape[1]), _base_shape(module)
    if shape != base:
        raise AdapterError(
            f"adapter {name!r}: its delta of layer {place} is {shape}, the base model's weight is {base}; "
            "expected the same shape; was it trained on another model?"
        )
    return left, right


def _differences(module: Any, names: Sequence[str]) -> Iterator[tuple[str, dict[int, torch.Tensor], tuple[int, ...]]]:
    """Parameters that adapters trained in full: name within the module, difference to the base per probe."""
    trained = {
        number: dict(module.modules_to_save[name].named_parameters())
        for number, name in enumerate(names)
        if name in module.modules_to_save
    }
    for name, original in module.original_module.named_parameters():
        full = {
            # Read from a file they lie on the CPU, and the base's own weights where the model is.
            number: parameters[name].detach().float().to(original.device) - original.detach().float()
            for number, parameters in trained.items()
        }
        if full:
            yield name, full, tuple(original.shape)
