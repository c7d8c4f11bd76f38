"""Other processes for a run: which GPU each sees, and what they must be told to see the same model and data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.compute.budget import Batch, world_size
from opmix.config import ModelConfig, SearchConfig
from opmix.errors import ConfigError
from opmix.execution.attempts import withdraw_all
from opmix.execution.context import Context
from opmix.execution.settings import ExecutorSettings
from opmix.runs.run_folder import kept_at
from opmix.runs.store import RunStore
from opmix.settings import as_json, changed

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.probes.handed_out import Elsewhere
    from opmix.training.factory import TrainerFactory

_COPY = "tasks/copy"
"""Model and tokenizer that the search was given as objects."""


def elsewhere(
    config: SearchConfig,
    base: Path,
    store: RunStore,
    *,
    model: Any,
    given: tuple[Any, Any],
    make_trainer: TrainerFactory | None,
) -> Elsewhere | None:
    """The processes that do a search's works, started when there is something to do; None: this one does.

    Args:
        config: Of the search.
        base: Folder that its relative paths start from.
        store: The run folder; the processes end before its lock is released.
        model: As it is loaded here.
        given: Model and tokenizer that the search was given as objects; None where it loaded them itself.
        make_trainer: The user's own, which no other process can have.

    Raises:
        ConfigError: The executor cannot do this search; says why.
    """
    wanted = config.executor
    if wanted.kind == "local" and store.held:
        withdraw_all(store.folder)
    if not wanted.elsewhere:
        return None
    Batch.of(config.trainer, wanted.ranks)  # what the ranks of a task could not share is said here
    check_others(wanted, store, make_trainer)
    from opmix.probes.evaluation import device_of

    device = device_of(model).type
    copy = store.folder / _COPY

    def prepare() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        if given[0] is not None:
            model.save_pretrained(copy)
        if given[1] is not None:
            given[1].save_pretrained(copy)
        frozen = [] if given[0] is None else [n for n, p in model.named_parameters() if not p.requires_grad]
        Context(worker="search", config=as_json(told), base=base, frozen=frozen).write(store.folder)

    check_precision(wanted, config.model.dtype, device)
    told = changed(config, executor=ExecutorSettings(), model=_told_model(config.model, store, model, given, device))
    store.before_release(lambda: shutil.rmtree(copy, ignore_errors=True))
    return others(wanted, store, device=device, prepare=prepare)


def check_others(wanted: ExecutorSettings, store: RunStore, make_trainer: TrainerFactory | None) -> None:
    """Refuse what other processes cannot have.

    Args:
        wanted: The settings, which ask for other processes.
        store: The run folder.
        make_trainer: The user's own, an object of this process.

    Raises:
        ConfigError: Says what.
    """
    if wanted.kind != "local" and (url := kept_at(store.folder)) is not None:
        raise ConfigError(
            f"{_said(wanted)}; the run is kept at {url}, which its jobs do not see while they work; expected a "
            "folder that "
            "all nodes share, or `executor.kind: local`"
        )
    if make_trainer is not None:
        raise ConfigError(
            f"{_said(wanted)}; make_trainer is an object of this process, which others cannot have; expected one slot "
            "with it"
        )


def others(wanted: ExecutorSettings, store: RunStore, *, device: str, prepare: Callable[[], None]) -> Elsewhere:
    """The processes that do a run's works, started when there is something to do.

    Args:
        wanted: The settings, which ask for other processes.
        store: The run folder; the processes end before its lock is released.
        device: Type of the device that models are on here.
        prepare: Called once, before the first process is started: writes what they are told.

    Raises:
        ConfigError: There are too few GPUs, or no such engine.
    """
    from opmix.execution.engines import executor_of
    from opmix.probes.handed_out import Elsewhere

    executor = executor_of(wanted, device=device, devices=devices_of(wanted, device), prepare=prepare)
    store.before_release(executor.close)
    return Elsewhere(executor=executor, tries=wanted.tries, save_every=wanted.save_every)


def _said(wanted: ExecutorSettings) -> str:
    return f"executor.slots: {wanted.slots}" if wanted.kind == "local" else f"executor.kind: {wanted.kind}"


def check_precision(wanted: ExecutorSettings, dtype: str, device: str) -> None:
    """Refuse GPUs for tasks where what a model's precision is depends on the device, and there is none here.

    Args:
        wanted: The settings.
        dtype: As the model's settings say.
        device: Type of the device that the model is on here.

    Raises:
        ConfigError: Tasks would see another model.
    """
    if wanted.resources.gpus and device != "cuda" and dtype == "auto":
        raise ConfigError(
            f"model.dtype: auto; it is bfloat16 on the GPUs of executor.resources.gpus and float32 here, on "
            f"{device}: expected the same model everywhere: set model.dtype, or start this command on a node with a GPU"
        )


def devices_of(wanted: ExecutorSettings, device: str) -> list[str]:
    """GPU of each slot of this machine, as `CUDA_VISIBLE_DEVICES` names it; empty: it needs none.

    Raises:
        ConfigError: More slots than GPUs, or a launcher's ranks.
    """
    if world_size() > 1:
        raise ConfigError(
            f"{_said(wanted)}; WORLD_SIZE is {world_size()}: expected one of both, ranks that train "
            "together or slots that train apart"
        )
    if device != "cuda" or wanted.kind != "local":
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(n) for n in range(torch.cuda.device_count())] if named is None else named.split(",")
    if wanted.slots > len(visible):
        raise ConfigError(f"executor.slots: {wanted.slots}; expected at most {len(visible)}, the GPUs that there are")
    return [name.strip() for name in visible[: wanted.slots]]


def _told_model(wanted: ModelConfig, store: RunStore, model: Any, given: tuple[Any, Any], device: str) -> ModelConfig:
    """Where the processes find the model as it is here."""
    copy = str((store.folder / _COPY).resolve())
    if device == "cuda":
        wanted = changed(wanted, device="cuda")  # each sees one GPU
    if given[1] is not None:
        wanted = changed(wanted, tokenizer=copy)
    if given[0] is None:
        return wanted
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"executor.slots: other processes load models in float32 or bfloat16, not in {dtype}")
    attention = getattr(model.config, "_attn_implementation", None)
    return changed(wanted, name=copy, revision=None, dtype=dtype, device=device, attn_implementation=attention)
