"""What `trainer` may say of a model spread over the ranks (`fsdp`, `fsdp_config`), and what cannot be done with one. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from opmix.compute.budget import FSDP, FSDP_CONFIG, asks_for_parts

_TAKEN = {
    "version": "2",
    "reshard_after_forward": "true or false",
    "activation_checkpointing": "true or false",
    "cpu_ram_efficient_loading": "false",
    "state_dict_type": "SHARDED_STATE_DICT",
    "auto_wrap_policy": "the Trainer's",
    "transformer_layer_cls_to_wrap": "names of layers",
    "min_num_params": "a number",
}
"""Keys of `fsdp_config` that are passed on, and what they may be."""
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "version": (2, "2"),
    "cpu_ram_efficient_loading": (False, "false"),
    "state_dict_type": ("SHARDED_STATE_DICT",),
}


def fsdp_problems(arguments: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with how the model is to be spread; nothing of it depends on how many ranks there are."""
    problems, given = [], arguments.get(FSDP_CONFIG)
    if arguments.get("deepspeed") is not None:
        problems.append(
            f"{where}.deepspeed: opmix does not drive DeepSpeed; expected {where}.fsdp: true, which spreads a model too"
        )
    if given is not None and not isinstance(given, Mapping):
        problems.append(f"{where}.{FSDP_CONFIG}: {given!r}; expected keys and values, {', '.join(_TAKEN)}")
    elif given and not asks_for_parts(arguments):
        problems.append(
            f"{where}.{FSDP_CONFIG}: says how, but {where}.{FSDP} is not set; add {FSDP}: true, or remove it"
        )
    for name, value in (given if isinstance(given, Mapping) else {}).items():
        key = str(name).removeprefix("fsdp_")
        if key not in _TAKEN:
            problems.append(f"{where}.{FSDP_CONFIG}.{name}: not passed on; expected {', '.join(_TAKEN)}")
        elif key in _ONLY and value not in _ONLY[key]:
            problems.append(f"{where}.{FSDP_CONFIG}.{name}: {value!r}; expected {_TAKEN[key]}, or leave it out")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not asks_for_parts(arguments):
        problems.append(
            f"{where}.{FSDP}: the launcher asks for FSDP (ACCELERATE_USE_FSDP), the configuration does not; set "
            f"{FSDP}: true, which probes and measurements hear of too, or start without --use_fsdp"
        )
    return problems


def kept_from_parts(arguments: Mapping[str, Any], said: Mapping[str, tuple[bool, str]]) -> Iterator[str]:
    """A sentence for everything that is wanted and needs a whole model in a process.

    Args:
        arguments: Of `trainer`.
        said: By dotted path whether it is wanted, and what is expected instead.
    """
    if asks_for_parts(arguments):
        for path, (wanted, instead) in said.items():
            if wanted:
                yield (
                    f"{path}: needs the whole model in a process, and trainer.{FSDP} spreads it "
                    f"over the ranks; {instead}"
                )
