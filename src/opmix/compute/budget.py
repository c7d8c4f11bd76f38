"""Rows of an optimizer step, and processes of a run (standard library only)."""

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
