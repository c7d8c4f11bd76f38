"""Rows of an optimizer step, and processes of a run (standard library only)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opmix.errors import ConfigError

ROWS, MICRO = "batch", "micro_batch"
"""Keys of `trainer` that are ours."""
PER_DEVICE, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
FSDP, FSDP_CONFIG = "fsdp", "fsdp_config"
"""Keys of `trainer` by which the ranks hold a part of the model each; transformers' names."""
_DEVICE = 8
"""Rows that a device takes at once where nothing is said: the Trainer's default, and at most as many with `batch`."""
_MOST = 1_000_000


def world_size() -> int:
    """Processes of this run, as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one of its run that talks to people."""
    return world_size() == 1 or int(os.environ.get("RANK", "0")) == 0


def asks_for_parts(arguments: Mapping[str, Any] | None) -> bool:
    """Whether ranks are to hold a part of the model each, however many there are; `arguments` are those of `trainer`."""
    return isinstance(arguments, Mapping) and bool(arguments.get(FSDP))


def spread(arguments: Mapping[str, Any]) -> bool:
    """Whether each rank of this run holds a part of the model; `arguments` are those of `trainer`. One process holds all of it."""
    return asks_for_parts(arguments) and world_size() > 1


def sequences_per_step(arguments: Mapping[str, Any]) -> int:
    """Rows of one optimizer step over all ranks; `arguments` are those of `trainer`.

    Raises:
        ConfigError: A size that is no whole number of at least 1.
    """
    if ROWS in arguments:
        return _whole(arguments, ROWS, _DEVICE)
    return _whole(arguments, PER_DEVICE, _DEVICE) * _whole(arguments, ACCUMULATION, 1)


def _whole(arguments: Mapping[str, Any], name: str, default: int) -> int:
    value = arguments.get(name, default)
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        size = 0
    if not 1 <= size <= _MOST or (isinstance(value, float) and value != size):
        raise ConfigError(f"trainer.{name}: {value!r}; expected a whole number from 1 to {_MOST:,}")
    return size


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How the rows of an optimizer step lie over devices and time."""

    rows: int
    """Of a step, over all ranks."""
    micro: int
    """That a device takes at once."""
    accumulation: int
    """Micro-batches of a step on each rank."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any], ranks: int | None = None) -> Batch:
        """As `trainer` says; `ranks`: None: those of this run.

        Raises:
            ConfigError: The rows cannot be laid out evenly, or several ranks are told the rows of a device only.
        """
        ranks = world_size() if ranks is None else ranks
        rows = sequences_per_step(arguments)
        if ROWS not in arguments:
            if ranks > 1:
                raise ConfigError(
                    f"trainer.batch: missing; with {ranks} ranks say the rows of an optimizer step over all of "
                    f"them, so that a run is the same on any number: `batch: {rows}` in place of {PER_DEVICE} and "
                    f"{ACCUMULATION} is what one process would have had"
                )
            return cls(
                rows=rows,
                micro=_whole(arguments, PER_DEVICE, _DEVICE),
                accumulation=_whole(arguments, ACCUMULATION, 1),
            )
        if rows % ranks:
            raise ConfigError(f"trainer.batch: {rows} rows for {ranks} ranks; expected a multiple of {ranks}")
        each = rows // ranks
        micro = _whole(arguments, MICRO, max(n for n in range(1, _DEVICE + 1) if each % n == 0))
        if each % micro:
            raise ConfigError(
                f"trainer.micro_batch: {micro}; expected a divisor of {each}, the rows of a step on each of {ranks} "
                f"ranks (trainer.batch: {rows})"
            )
        return cls(rows=rows, micro=micro, accumulation=each // micro)


def for_transformers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `trainer` as `TrainingArguments` takes them on this number of ranks.

    Raises:
        ConfigError: See `Batch.of`.
    """
    kept = {name: value for name, value in arguments.items() if name not in (ROWS, MICRO, FSDP, FSDP_CONFIG)}
    if spread(arguments):
        told = {str(name).removeprefix("fsdp_"): value for name, value in (arguments.get(FSDP_CONFIG) or {}).items()}
        kept |= {FSDP: True, FSDP_CONFIG: {**told, "version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
    if ROWS not in arguments:
        return kept
    batch = Batch.of(arguments)
    return {**kept, PER_DEVICE: batch.micro, ACCUMULATION: batch.accumulation}
