"""PEFT's switches on a model, kept and put back: active adapters, scales, on or off, trainable or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

_SWITCHES = ("_active_adapter", "_disable_adapters", "scaling")


def _switchable(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list) else value


@contextmanager
def adapters_restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens to the adapters' switches inside is undone on leaving."""
    switches = [
        (module, {key: _copy(vars(module)[key]) for key in _SWITCHES if key in vars(module)})
        for module in _switchable(model)
    ]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()] if switches else []
    try:
        yield
    finally:
        for module, values in switches:
            vars(module).update(values)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def adapters_off(model: nn.Module) -> None:
    """Let every wrapped layer compute what the base model's does."""
    for module in _switchable(model):
        module.enable_adapters(False)
