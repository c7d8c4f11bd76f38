"""Rows of an optimizer step, and processes of a run (standard library only)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opmix.errors import ConfigError

_ACCUMULATION = "gradient_accumulation_steps"
_MOST = 1_000_000


def world_size() -> int:
    """Processes of this run, as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sequences_per_step(arguments: Mapping[str, Any], processes: int = 1) -> int:
    """Rows of one optimizer step over all processes; `arguments` are those of `transformers.TrainingArguments`.

    Raises:
        ConfigError: A size that is no whole number of at least 1.
    """
    return _whole(arguments, "per_device_train_batch_size", 8) * _whole(arguments, _ACCUMULATION, 1) * processes


def _whole(arguments: Mapping[str, Any], name: str, default: int) -> int:
    value = arguments.get(name, default)
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        size = 0
    if not 1 <= size <= _MOST or (isinstance(value, float) and value != size):
        raise ConfigError(f"trainer.{name}: {value!r}; expected a whole number from 1 to {_MOST:,}")
    return size
