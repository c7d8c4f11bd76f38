"""The one seam to trainers: `make_trainer(model, dataset, ...)`, the same for probes and full runs.

No loop of our own. Replace the factory (`opmix.search(..., make_trainer=...)`) to use another Trainer subclass, collator,
optimiser or callback: probes then learn exactly as the full run will.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from opmix.compute.budget import FSDP, FSDP_CONFIG, asks_for_parts, world_size
from opmix.data import pad_rows
from opmix.errors import ConfigError, StoreError, TrainingError
from opmix.runs.trace import add_span, span
from opmix.training.chunked_loss import ChunkedTrainer
from opmix.training.isolation import check_isolation
from opmix.training.sharding import accelerate_forgets, check_spread, spread_on_cpus

_NOT_OF_PROBES = {"report_to", "run_name", "project", "trackio_space_id", FSDP, FSDP_CONFIG}
_SHOWN_PREFIXES = ("eval_", "save_", "logging_", "push_to_hub", "hub_")


def quiet(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer arguments without trackers, evaluations and checkpoints: a probe or proxy run is none of their business.

    Nor is how a full training spreads its model: that of a probe is in parts already when it is loaded.
    """
    return {k: v for k, v in arguments.items() if k not in _NOT_OF_PROBES and not k.startswith(_SHOWN_PREFIXES)}


class TrainerFactory(Protocol):
    """Builds a Trainer for one run."""

    def __call__(self, spec: TrainSpec) -> Trainer:
        """A Trainer ready for `.train()`; it must take rows in order (`train_sampling_strategy="sequential"`)."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One training run, whatever it trains."""

    model: PreTrainedModel | Any
    dataset: Dataset[Any]
    output_dir: Path
    steps: int
    seed: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """User's TrainingArguments, without the reserved ones."""
    callbacks: Sequence[TrainerCallback] = ()
    last_callbacks: Sequence[TrainerCallback] = ()
    """Called after all others, those that the factory adds included."""
    held_out: Mapping[str, Dataset[Any]] | None = None
    """Rows by domain that the Trainer evaluates on as it goes (`eval_strategy` in the arguments says when)."""
    stop_at: int | None = None
    """Optimizer step to stop at, before `steps`, which the schedule is for."""
    resume_from: Path | None = None
    """Trainer checkpoint to go on from."""
    optimizer_state: Path | None = None
    """`optimizer.pt` of an earlier run whose moments are taken over; its learning rate is not."""


def default_trainer(spec: TrainSpec, kind: type[Trainer] = Trainer) -> Trainer:
    """`transformers.Trainer` on packed sequences; fp32 on CPU, bf16 on a GPU that has it, unless the user says otherwise."""
    cuda, spread = torch.cuda.is_available(), asks_for_parts(spec.arguments)
    on_cpu = next(spec.model.parameters()).device.type == "cpu"  # one that is to be spread waits there for the GPUs
    defaults: dict[str, Any] = {
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "bf16": cuda and torch.cuda.is_bf16_supported() and not spec.arguments.get("fp16", False),
        "use_cpu": on_cpu and not (cuda and spread),
        "dataloader_pin_memory": cuda,
    }
    if world_size() > 1 and not cuda:
        defaults["ddp_backend"] = "gloo"
    arguments = TrainingArguments(
        output_dir=str(spec.output_dir),
        max_steps=spec.steps,
        seed=spec.seed,
        train_sampling_strategy="sequential",
        **{**defaults, **spec.arguments},
    )
    if spread:
        spread_on_cpus(arguments)
    trainer = (ChunkedTrainer if kind is Trainer else kind)(
        model=spec.model,
        args=arguments,
        train_dataset=spec.dataset,
        eval_dataset=dict(spec.held_out) if spec.held_out else None,
        callbacks=[LossGuard(), *spec.callbacks],
        data_collator=stack_rows,
    )
    trainer.remove_callback(_printer())
    if spread:
        check_spread(trainer)
    return trainer


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def stack_rows(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows to a batch, padded on the right; a whole micro-batch (`GroupedDataset`) is one already."""
    if len(rows) == 1 and next(iter(rows[0].values())).ndim == 2:
        return dict(rows[0])
    return pad_rows(rows)


class ReachedError(Exception):
    """A Trainer that goes on from a checkpoint is where it should stop already; its next step is not to be trained."""


class LossGuard(TrainerCallback):
    """Stops a run whose weights are no longer finite, instead of finishing on NaN."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check one number a step, and everything at the end."""
        if state.global_step % 50 and state.global_step != state.max_steps:
            return
        for name, parameter in kwargs["model"].named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"weights of {name} are NaN or infinite at step {state.global_step} of {state.max_steps}; "
                    f"the learning rate {args.learning_rate:g} may be too high, or the data hold broken tokens"
                )


class TracedPauses(TrainerCallback):
    """Traces what is no training while a Trainer trains: its beginning, and checkpoints. Called after all others."""

    def __init__(self) -> None:
        self._from = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What comes before the first step is over."""
        add_span("begin to train", "loading", self._from)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint may follow."""
        self._from = time.time()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It follows now."""
        self._from = time.time()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It is written."""
        add_span("checkpoint", "saving", self._from)


class StepProgress(TrainerCallback):
    """Tells a progress display how far a run is."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report steps done of steps in all."""
        self.report(state.global_step, state.max_steps)


def check_attention(spec: TrainSpec) -> None:
    """Refuse an attention that would let packed conversations or documents see each other.

    Raises:
        ConfigError: Flash attention, which in transformers heeds restarting positions only in batches of one row; or a model that
            does not heed them at all.
    """
    if not getattr(spec.dataset, "restarts", False):
        return
    kind = str(getattr(spec.model.config, "_attn_implementation", None))
    if "flash" in kind:
        raise ConfigError(
            f"model.attn_implementation: {kind!r} lets the conversations (or documents, with document_mask) of a row "
            "see each other in "
            "batches of several rows; expected 'sdpa', 'eager' or 'flex_attention'; change it, or set `packing: false`"
        )
    check_isolation(spec.model)


@accelerate_forgets()
def run_training(factory: TrainerFactory, spec: TrainSpec) -> Trainer:
    """Train to `stop_at`, or to the last step; returns the Trainer, its state and log included.

    Raises:
        TrainingError: The loss is not finite, or the trainer stopped early.
        StoreError: A checkpoint cannot be written.
    """
    with span("prepare the trainer", "loading"):
        check_attention(spec)
        trainer = factory(spec)
    if spec.optimizer_state is not None and spec.resume_from is None:
        take_over_optimizer(trainer, spec.optimizer_state)
    for callback in (*spec.last_callbacks, TracedPauses()):
        trainer.add_callback(callback)
    wanted = spec.stop_at or spec.steps
    try:
        with span("train", "training"):
            output = trainer.train(resume_from_checkpoint=str(spec.resume_from) if spec.resume_from else None)
    except ReachedError:  # the process before died between its last checkpoint and its record
        output, trainer.is_in_train = None, False
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{spec.output_dir}: writing a checkpoint failed ({error}); free space there and run the same command "
            "again, "
            "it goes on from the last whole checkpoint"
        ) from error
    if trainer.state.global_step != wanted:
        raise TrainingError(
            f"the trainer stopped after {trainer.state.global_step} of {wanted} steps; runs must be matched, "
            "so early stopping and time limits cannot be used here"
        )
    loss = float(output.training_loss) if output is not None else 0.0  # a loss that is not finite leaves no checkpoint
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss is {loss} after {wanted} steps; lower trainer.learning_rate (now "
            f"{spec.arguments.get('learning_rate', 'the default')}) or look for broken documents"
        )
    return trainer


def take_over_optimizer(trainer: Trainer, file: Path) -> None:
    """Give a Trainer the moments of an earlier run; groups, rates and decay stay its own.

    Raises:
        StoreError: The file is damaged or belongs to another model.
    """
    optimizer = trainer.create_optimizer()
    try:
        # The type alone: on ranks without GPUs the device is "cpu:0", which torch.load does not know.
        saved = torch.load(file, map_location=trainer.args.device.type, weights_only=True)
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            raise ValueError(f"it holds parameter groups of {sizes}")
        optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"{file}: not the optimizer state of this model ({error}); use `optimizer: fresh` for the stage, "
            "or train the stage before again"
        ) from error
