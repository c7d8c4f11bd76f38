"""From a budget in tokens to optimizer steps (standard library only)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def world_size() -> int:
    """Processes of this run, as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sequences_per_step(arguments: Mapping[str, Any], processes: int = 1) -> int:
    """Rows of one optimizer step over all processes; `arguments` are those of `transformers.TrainingArguments`."""
    per_device = int(arguments.get("per_device_train_batch_size", 8))
    return per_device * int(arguments.get("gradient_accumulation_steps", 1)) * processes


def steps_for(tokens: float, arguments: Mapping[str, Any], sequence_length: int) -> int:
    """Whole optimizer steps nearest to a budget of tokens, at least one.

    Examples:
        >>> steps_for(2_000_000, {"per_device_train_batch_size": 8}, 128)
        1953
    """
    return max(1, round(tokens / (sequences_per_step(arguments, world_size()) * sequence_length)))
