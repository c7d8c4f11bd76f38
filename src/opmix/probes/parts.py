"""A probe's training run in parts: each goes on from the checkpoint in which the one before ended, as if it had never stopped.

The learning rate is constant and the order of the data is that of the whole run, so a run looked at after n steps has learned just what
the whole run had learned after n.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset

from opmix.runs.ranks import ranks_here
from opmix.training.checkpoints import (
    CompleteCheckpoints,
    StopAt,
    mark_checkpoint,
    restore_usage,
    whole_checkpoints,
)
from opmix.training.factory import TrainerFactory, TrainSpec, run_training
from opmix.training.objectives import Usage

_ADAPTER, _MOMENTS = "adapter.safetensors", "optimizer.pt"


def train_adapters_until(
    factory: TrainerFactory, spec: TrainSpec, step: int, *, key: str, usage: Usage, save_every: int | None = None
) -> None:
    """Train the part of a run that ends at `step`, from the newest checkpoint before it, where the Trainer cannot resume by itself.

    It cannot on a model that was sharded as it was loaded, or with several adapters at once. What is trained, its moments and the rows
    that are left are the same run, and all of it is small.

    Raises:
        TrainingError: It diverged.
        StoreError: A checkpoint cannot be written.
    """
    key = f"{key}-sharded"
    done = ranks_here().shared(max((at for at, _ in whole_checkpoints(spec.output_dir, key) if at < step), default=0))
    for stop in (*(range(save_every, step, save_every) if save_every else ()), step):
        if done < stop:
            _train_part(factory, spec, stop, key=key, usage=usage)


def _train_part(factory: TrainerFactory, spec: TrainSpec, step: int, *, key: str, usage: Usage) -> None:
    ranks = ranks_here()
    before = [found for found in whole_checkpoints(spec.output_dir, key) if found[0] < step]
    done, newest = ranks.shared(before[-1] if before else (0, None))
    part = replace(spec, steps=step - done, dataset=_Rest(spec.dataset, done * len(spec.dataset) // spec.steps))
    if newest is not None:
        restore_usage(newest, key, usage)
        kept = load_file(newest / _ADAPTER)
        with torch.no_grad():
            for name, weight in _trained(spec.model):
                weight.copy_(kept[name])
        part = replace(part, optimizer_state=newest / _MOMENTS)
    trainer = run_training(factory, part)
    if step == spec.steps:
        return
    with ranks.agreed():
        if ranks.first:
            folder = spec.output_dir / f"checkpoint-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: weight.detach().cpu() for name, weight in _trained(spec.model)}, folder / _ADAPTER)
            torch.save(trainer.optimizer.state_dict(), folder / _MOMENTS)
            mark_checkpoint(folder, key, step, usage)
            for _, old in before[:-1]:
                shutil.rmtree(old, ignore_errors=True)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


class _Rest(Dataset[Any]):
    """What of a dataset comes from a row on."""

    def __init__(self, dataset: Any, start: int) -> None:
        self.dataset, self.start = dataset, start
        self.restarts = bool(getattr(dataset, "restarts", False))

    def __len__(self) -> int:
        return len(self.dataset) - self.start

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.start + index]


def until(spec: TrainSpec, step: int, *, key: str, usage: Usage, save_every: int | None = None) -> TrainSpec:
    """The part of a run that ends at `step`: from the newest checkpoint before it, and with one at its end unless the run is over.

    Args:
        spec: The whole run; checkpoints lie in its `output_dir`.
        step: Where to stop.
        key: Of the run; checkpoints of another are not used.
        usage: Taken up from the checkpoint where there is one.
        save_every: Steps between further checkpoints; None: there are none.
    """
    ranks = ranks_here()
    before = [folder for reached, folder in whole_checkpoints(spec.output_dir, key) if reached < step]
    if (newest := ranks.shared(before[-1] if before else None)) is not None:
        restore_usage(newest, key, usage)
        spec = replace(spec, resume_from=newest)
    if step == spec.steps and save_every is None:
        return spec
    # Two are kept: one that was written just before the process died is not yet recorded, and is made again from the one before.
    keeper = CompleteCheckpoints(key, usage, keep=2)
    saving = {} if save_every is None else {"save_strategy": "steps", "save_steps": save_every}
    return replace(
        spec,
        stop_at=step,
        arguments={**spec.arguments, **saving},
        callbacks=[*spec.callbacks, *([StopAt(step)] if step < spec.steps else [])],
        last_callbacks=[*spec.last_callbacks, keeper],
    )


@contextmanager
def saving_only(model: PeftModel, adapter: str) -> Iterator[None]:
    """Let checkpoints hold one adapter: a checkpoint with the others in it would put these back too, to what they were then."""
    vars(model)["save_pretrained"] = partial(
        model.save_pretrained, selected_adapters=[adapter], save_embedding_layers=False
    )
    try:
        yield
    finally:
        del vars(model)["save_pretrained"]
