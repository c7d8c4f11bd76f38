"""Adapters as delta weights: read PEFT's factors, never PEFT's merging.

The delta of one adapted weight is `dW = s B A` with `s = alpha / r` (or `alpha / sqrt(r)` under rsLoRA); a mixture of probes is
`sum_k w_k s_k B_k A_k`. Stacked as `(B diag(w s)) A` this is one matrix product of inner size `sum_k r_k`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from opmix.errors import AdapterError
from opmix.mixing.mixture import FloatArray
from opmix.models import base_parameters


@dataclass(frozen=True)
class LowRank:
    """Delta of one weight under one probe, `scale * up @ down`, transposed where the layer stores it so."""

    down: torch.Tensor  # (r, in)
    up: torch.Tensor  # (out, r)
    scale: float
    transposed: bool = False


@dataclass(frozen=True)
class FullRank:
    """Delta of a weight that a probe trained in full."""

    delta: torch.Tensor


Delta = LowRank | FullRank


@dataclass(frozen=True)
class DeltaSet:
    """Delta weights of P probes over the parameters of one base model, float32."""

    probes: tuple[str, ...]
    deltas: Mapping[str, tuple[Delta | None, ...]]
    """Parameter name: one delta per probe; None where a probe leaves the parameter alone."""

    @classmethod
    def from_peft(cls, model: PeftModel, names: Sequence[str]) -> DeltaSet:
        """Read adapters that are loaded in a `PeftModel`.

        Raises:
            AdapterError: An adapter that is not linear in its weight (DoRA, LoRA biases, other tuners), or does not exist.
        """
        for name in names:
            check_config(model.peft_config.get(name), name)
        parameters = {id(p): n for n, p in base_parameters(model)}
        deltas: dict[str, list[Delta | None]] = {}
        for module_name, module in model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                base = module.get_base_layer()
                parameter = parameters[id(base.weight)]
                found = [_lora_delta(module, name, module_name) for name in names]
            elif isinstance(module, ModulesToSaveWrapper):
                _full_deltas(module, names, parameters, deltas)
                continue
            else:
                continue
            if any(d is not None for d in found):
                _add(deltas, parameter, found, module_name)
        if not deltas:
            raise AdapterError(f"adapters {list(names)} change no parameter of the model; were they trained for it?")
        return cls(tuple(names), {name: tuple(d) for name, d in deltas.items()})

    @classmethod
    def from_folders(cls, model: torch.nn.Module, folders: Mapping[str, Path]) -> DeltaSet:
        """Load saved PEFT adapters onto a base model, read them, and take them off again.

        Raises:
            AdapterError: As `from_peft`, or a folder that is no adapter of this model.
        """
        names = list(folders)
        wrapped: PeftModel | None = None
        try:
            for name, folder in folders.items():
                check_config(LoraConfig.from_pretrained(str(folder)), name)
                if wrapped is None:
                    wrapped = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
                else:
                    wrapped.load_adapter(str(folder), adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            if wrapped is not None:
                wrapped.unload()
            raise AdapterError(f"adapter {name!r} in {folder} does not fit {type(model).__name__}: {error}") from error
        assert wrapped is not None
        try:
            return cls.from_peft(wrapped, names)
        finally:
            wrapped.unload()

    def delta(self, parameter: str, weights: FloatArray) -> torch.Tensor:
        """`sum_k w_k dW_k` of one parameter, float32, on the adapters' device."""
        total: torch.Tensor | None = None
        low = [
            (d, float(w))
            for d, w in zip(self.deltas[parameter], weights, strict=True)
            if isinstance(d, LowRank) and w != 0
        ]
        if low:
            down = torch.cat([d.down for d, _ in low])
            up = torch.cat([d.up * (d.scale * w) for d, w in low], dim=1)
            total = (up @ down).T if low[0][0].transposed else up @ down
        for d, w in zip(self.deltas[parameter], weights, strict=True):
            if isinstance(d, FullRank) and w != 0:
                total = d.delta * float(w) if total is None else total + d.delta * float(w)
        if total is None:
            first = next(d for d in self.deltas[parameter] if d is not None)
            return torch.zeros(self.shape(first), device=self._device(first))
        return total

    @staticmethod
    def shape(delta: Delta) -> tuple[int, int]:
        """Shape of the parameter that a delta belongs to."""
        if isinstance(delta, FullRank):
            return tuple(delta.delta.shape)
        out, inner = delta.up.shape[0], delta.down.shape[1]
        return (inner, out) if delta.transposed else (out, inner)

    @staticmethod
    def _device(delta: Delta) -> torch.device:
        return delta.delta.device if isinstance(delta, FullRank) else delta.up.device

    def gram(self) -> FloatArray:
        """Inner products `<dW_i, dW_j>` over all parameters, (P, P), through the factors."""
        num = len(self.probes)
        gram = torch.zeros(num, num, dtype=torch.float64)
        for parameter, row in self.deltas.items():
            for i in range(num):
                for j in range(i + 1):
                    a, b = row[i], row[j]
                    if a is None or b is None:
                        continue
                    if isinstance(a, LowRank) and isinstance(b, LowRank):
                        product = ((a.up.T @ b.up) * (a.down @ b.down.T)).sum() * (a.scale * b.scale)
                    else:
                        one = np_eye(num)
                        product = (self.delta(parameter, one[i]) * self.delta(parameter, one[j])).sum()
                    gram[i, j] += product.double().cpu()
                    gram[j, i] = gram[i, j]
        return gram.numpy()


def np_eye(num: int) -> FloatArray:
    """Identity as float64."""
    import numpy as np

    return np.eye(num)


def check_config(config: Any, name: str) -> None:
    """Refuse what is not linear in its weight, by name.

    Raises:
        AdapterError: DoRA, LoRA biases, trained biases, other tuners, fused experts.
    """
    if config is None:
        raise AdapterError(f"adapter {name!r} is not loaded in this model")
    if not isinstance(config, LoraConfig):
        raise AdapterError(
            f"adapter {name!r} is {type(config).__name__}; expected LoRA, whose delta is linear in its weight"
        )
    reasons = {
        "use_dora (DoRA rescales columns by a norm of base plus delta)": config.use_dora,
        "lora_bias (a bias per adapter)": config.lora_bias,
        f"bias={config.bias!r} (trained biases)": config.bias != "none",
        "target_parameters (fused expert weights)": bool(getattr(config, "target_parameters", None)),
    }
    refused = [reason for reason, present in reasons.items() if present]
    if refused:
        raise AdapterError(
            f"adapter {name!r} uses {', '.join(refused)}: it cannot be interpolated exactly; train probes without"
        )


def _lora_delta(module: LoraLayer, name: str, where: str) -> Delta | None:
    transposed = bool(getattr(module, "fan_in_fan_out", False))
    if name in module.lora_A:
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
    elif name in module.lora_embedding_A:
        down, up, transposed = module.lora_embedding_A[name], module.lora_embedding_B[name], True
    else:
        return None
    delta = LowRank(down.detach().float().clone(), up.detach().float().clone(), float(module.scaling[name]), transposed)
    base = tuple(module.get_base_layer().weight.shape)
    if DeltaSet.shape(delta) != base:
        raise AdapterError(
            f"adapter {name!r}: layer {where} has a delta of {DeltaSet.shape(delta)}, the base model's weight is {base}"
        )
    return delta


def _full_deltas(
    module: ModulesToSaveWrapper,
    names: Sequence[str],
    parameters: Mapping[int, str],
    deltas: dict[str, list[Delta | None]],
) -> None:
    originals = dict(module.original_module.named_parameters())
    for parameter, original in originals.items():
        found: list[Delta | None] = []
        for name in names:
            copy = module.modules_to_save[name] if name in module.modules_to_save else None
            trained = dict(copy.named_parameters())[parameter] if copy is not None else None
            found.append(None if trained is None else FullRank(trained.detach().float() - original.detach().float()))
        if any(d is not None for d in found):
            _add(deltas, parameters[id(original)], found, parameter)


def _add(deltas: dict[str, list[Delta | None]], parameter: str, found: list[Delta | None], where: str) -> None:
    if parameter in deltas:
        raise AdapterError(
            f"two adapted modules share the weight {parameter!r} (at {where}); adapt only one of tied modules"
        )
    deltas[parameter] = found
