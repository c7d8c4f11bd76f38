"""On which device a model lies, and in which precision."""

from __future__ import annotations

from typing import Literal

import torch

from opmix.errors import ModelError

DtypeName = Literal["auto", "float32", "bfloat16"]


def default_device() -> torch.device:
    """The accelerator that is present (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_type(name: str | None) -> str:
    """Kind of the device that a setting names (`cpu`, `cuda`, `mps`), whether it is here or not; None: of `default_device()`."""
    return (name or str(default_device())).partition(":")[0]


def device_named(name: str | torch.device | None) -> torch.device:
    """The device that a setting names; None: `default_device()`.

    Raises:
        ModelError: torch knows no such device, or there is none here.
    """
    try:
        device = default_device() if name is None else torch.device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model.device: {str(name)[:80]!r} is no device; expected cpu, cuda, cuda:1, mps, ..."
        ) from error
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:150]
        raise ModelError(
            f"model.device: {str(name)!r} is not here ({said}); expected a device of this machine; leave it out"
        ) from error
    return device


def resolve_dtype(dtype: DtypeName, device: torch.device) -> torch.dtype:
    """The precision that a setting names; `auto` is bfloat16 on a GPU that supports it and float32 elsewhere.

    Raises:
        ModelError: Another one.
    """
    if dtype == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype is {dtype!r}; expected 'auto', 'float32' or 'bfloat16'")
    return torch.float32 if dtype == "float32" else torch.bfloat16
