"""Arguments of `transformers.TrainingArguments`: taken as given, then converted, checked and tried. Imports no torch until then."""

from __future__ import annotations

import difflib
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from opmix.compute.budget import (
    ACCUMULATION,
    FSDP,
    MICRO,
    PER_DEVICE,
    ROWS,
    Batch,
    for_transformers,
    world_size,
)
from opmix.errors import ConfigError
from opmix.settings import Bounds, Given, ReadAs, number
from opmix.trackers import check_trackers
from opmix.training.fsdp_arguments import fsdp_problems

RESERVED = {
    "output_dir": "the run folder decides",
    "max_steps": "the token budget decides",
    "num_train_epochs": "the token budget decides",
    "train_sampling_strategy": "the mixture plan is the order",
    "seed": "set `seed` at the top level",
    "data_seed": "set `seed` at the top level",
}
"""Trainer arguments that opmix owns."""

_OF_ITS_RUN = ("output_dir", "max_steps", "num_train_epochs", "train_sampling_strategy")
"""What every `TrainingArguments` object says of a run of its own."""

_RANGES = {
    **dict.fromkeys((ROWS, MICRO, PER_DEVICE, ACCUMULATION, "per_device_eval_batch_size"), Bounds(ge=1)),
    **dict.fromkeys(("torch_empty_cache_steps", "eval_accumulation_steps", "dataloader_prefetch_factor"), Bounds(ge=1)),
    **dict.fromkeys(
        ("weight_decay", "max_grad_norm", "warmup_steps", "neftune_noise_alpha", "eval_delay"), Bounds(ge=0)
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Bounds(ge=0, lt=1)),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), Bounds(gt=0)),
    "learning_rate": Bounds(gt=0, le=100),
    "adam_epsilon": Bounds(gt=0, le=1),
    "save_total_limit": Bounds(ge=1),
    "dataloader_num_workers": Bounds(ge=0, le=1024),
}
"""What training can do with a number. A gradient of zero, which half of an adapter has at its first step, over an epsilon of zero is no
number; the ends above are far beyond what any optimizer learns with."""
_RATE = 5e-5
"""Learning rate of the Trainer where none is given."""
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def given_arguments(value: Any) -> Any:
    """Arguments as a mapping; of a `TrainingArguments` object those that are not the Trainer's defaults.

    What a class that inherits from it adds (`trl.SFTConfig`) is no argument of the Trainer: where it was set, a warning says that it is
    not read here.
    """
    if isinstance(value, Mapping) or not hasattr(value, "to_sanitized_dict"):
        return value
    from transformers import TrainingArguments

    same = {"output_dir": value.output_dir, "use_cpu": value.use_cpu}  # the device decides other defaults
    plain, own = TrainingArguments(**same), type(value)(**same)
    named = {f.name: getattr(value, f.name) for f in fields(value) if f.init and f.name not in _OF_ITS_RUN}
    further = [n for n, x in named.items() if not hasattr(plain, n) and x != getattr(own, n)]
    if further:
        warnings.warn(
            f"{type(value).__name__}: {', '.join(further)} are no arguments of transformers.Trainer and are not "
            f"read; see "
            "sequence_length, objective and the domains' `chat` settings",
            stacklevel=2,
        )
    found = {n: getattr(x, "value", x) for n, x in named.items() if hasattr(plain, n) and x != getattr(plain, n)}
    return found | ({"use_cpu": True} if value.use_cpu else {})


TrainerArguments = Annotated[Given, ReadAs(given_arguments)]
"""A mapping, or from Python a `TrainingArguments` object."""


def checked_arguments(arguments: Mapping[str, Any], where: str = "trainer") -> Given:
    """Convert arguments to the types that transformers declares, and let it try them, before any work.

    Args:
        arguments: By name.
        where: Place in the configuration, for messages.

    Raises:
        ConfigError: Unknown and reserved names, and values that cannot be; all at once, or what transformers refuses.
    """
    converted = typed_arguments(arguments, where)
    try_arguments(converted, where, trackers=False)
    return converted


def typed_arguments(arguments: Mapping[str, Any], where: str = "trainer") -> Given:
    """Arguments converted to the types that transformers declares; each on its own.

    Raises:
        ConfigError: Unknown and reserved names, and values that cannot be; all at once.
    """
    known, problems, converted = {**_kinds(), ROWS: (int,), MICRO: (int,), FSDP: (bool, NoneType)}, [], Given()
    for name, value in arguments.items():
        if name in RESERVED:
            problems.append(f"{where}.{name}: {RESERVED[name]}; remove it")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"{where}.{name}: no such TrainingArguments field{meant}")
        else:
            try:
                converted[name] = _converted(name, value, known[name])
            except ValueError as error:
                problems.append(f"{where}.{name}: {value!r}; {error}")
    twice = [name for name in (PER_DEVICE, ACCUMULATION) if name in arguments and ROWS in arguments]
    problems += [f"{where}.{name}: said by {where}.{ROWS} too; leave one out" for name in twice]
    if MICRO in arguments and ROWS not in arguments:
        problems.append(f"{where}.{MICRO}: divides {where}.{ROWS}, which is missing; add it")
    problems += fsdp_problems(converted, where)
    if problems:
        raise ConfigError(problems)
    return converted


def try_arguments(arguments: Mapping[str, Any], where: str = "trainer", *, trackers: bool = True) -> None:
    """Make the `TrainingArguments` and the Trainer that a run will make; probes have no trackers.

    Raises:
        ConfigError: transformers refuses them, a tracker is not installed, decay leaves nothing of the weights, or ranks cannot share
            the rows of a step.
    """
    Batch.of(arguments)
    # Each step scales weights by 1 - rate x decay: from 1 on nothing of them is left, or they grow with their sign turned.
    rate, decay = arguments.get("learning_rate", _RATE), arguments.get("weight_decay", 0.0)
    if rate * decay >= 1:
        raise ConfigError(
            f"{where}.weight_decay: {decay:g} at a learning rate of {rate:g}; expected less than {1 / rate:g}"
        )
    if world_size() > 1:  # making them would join the other ranks; the verbs say whether they take several
        return
    import torch
    from transformers import TrainingArguments

    from opmix.training.process_state import preserve_process_state

    check_trackers(arguments.get("report_to"), f"{where}.report_to", strict=False)
    defaults = {"report_to": "none", "use_cpu": not torch.cuda.is_available()}
    try:
        with tempfile.TemporaryDirectory() as folder, preserve_process_state():  # may be inside somebody's own training
            made = TrainingArguments(output_dir=folder, **{**defaults, **for_transformers(arguments)})
            made.report_to = made.report_to if trackers else []
            _try_trainer(made)
    except Exception as error:  # whatever the library and what it calls raise for a value they do not take
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{where}: transformers refuses these arguments: {first}; correct the value") from error


def _try_trainer(arguments: Any) -> None:
    """Make the Trainer, the optimizer and the schedule of these arguments, on a model of one layer of a few weights.

    Raises:
        Exception: Whatever libraries raise for what they do not take, or miss.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer

    size = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 8)
    arguments.push_to_hub = arguments.load_best_model_at_end = False  # would ask the hub, and for data
    arguments.eval_strategy = "no"
    model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1, num_attention_heads=1))
    trainer = Trainer(model=model, args=arguments)
    if arguments.optim_target_modules is None:  # else the names are those of the user's model
        trainer.create_optimizer_and_scheduler(num_training_steps=10)


@cache
def _kinds() -> dict[str, tuple[Any, ...]]:
    """Field: the types it may have."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(TrainingArguments) if f.init}


def _converted(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """The value in a type of its field.

    Raises:
        ValueError: Says what was expected.
    """
    if value is None and NoneType in kinds:
        return None
    if not {int, float} & set(kinds):
        if set(kinds) <= {bool, NoneType}:
            return _switch(value)
        return str(value) if str in kinds and isinstance(value, int | float) and bool not in kinds else value
    if isinstance(value, str) and str not in kinds:
        value = number(value)
    if (isinstance(value, str) and str in kinds) or (isinstance(value, bool) and bool in kinds):
        return value
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError("expected a whole number" if whole else "expected a number")
    if isinstance(value, float) and value.is_integer() and (whole or name.endswith("_steps")):
        value = int(value)
    if whole and not isinstance(value, int):
        raise ValueError("expected a whole number")
    if name in _RANGES and (expected := _RANGES[name].unmet(value)):
        raise ValueError(f"expected {expected}")
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    if value not in (True, False, None):
        raise ValueError("expected true or false")
    return value if value is None else bool(value)
