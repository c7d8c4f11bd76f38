"""Several probes as one batch: rows of all of them go through the frozen model together, each row through its own probe's adapter.

A small model's step on a GPU is the time to start its kernels, whatever they multiply: six probes then cost little more than one. Every
probe sees its own rows in its own order, and its gradients are its own, so it learns what it would have learned alone,
up to rounding (and to which units dropout leaves out, where there is dropout).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from opmix.compute.budget import PER_DEVICE, Batch, world_size
from opmix.data import PackedSequences
from opmix.mixing.mixture import Mixture
from opmix.models.layers import num_experts
from opmix.models.sharded import is_sharded
from opmix.probes.kinds import ADAPTERS
from opmix.probes.parts import train_adapters_until
from opmix.probes.tasks import ProbeRuntime, ProbeTask
from opmix.runs.trace import span
from opmix.training.chunked_loss import ChunkedTrainer
from opmix.training.factory import StepProgress, TrainSpec, default_trainer
from opmix.training.objectives import CAUSAL_LM, Usage
from opmix.training.plan import TrainingPlan, TrainingTotals, first_steps, plan_training, training_cost

_ELEMENTWISE = {"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad"}
"""Optimizers in which no weight's step depends on another's."""
_OWN_BATCH = ("auto_find_batch_size", "deepspeed")
"""Trainer arguments under which the rows of a batch, or its gradients, are not what was planned."""


def why_one_by_one(task: ProbeTask, runtime: ProbeRuntime) -> str | None:
    """What keeps probes like this one from being trained as one batch; None: nothing does."""
    settings, model, config = task.settings, runtime.model, runtime.model.config.get_text_config()
    gpus = torch.cuda.device_count() if model.device.type == "cuda" else 1
    asked = [name for name in _OWN_BATCH if task.trainer.get(name)]
    optimizer = task.trainer.get("optim", "adamw_torch")
    optimizer = str(getattr(optimizer, "value", optimizer))  # transformers has an enumeration of them
    told = {
        "`probes.kind` is not `lora`": settings.kind != "lora" or bool(settings.modules_to_save),
        "it has a trainer of its own": runtime.make_trainer is not None,
        "rows are conversations or of several lengths": runtime.objective is not CAUSAL_LM
        or not all(isinstance(r, PackedSequences) and not r.conversations for r in runtime.rows.values()),
        "`document_mask` is on": task.document_mask,
        "there are several ranks or GPUs in this process": world_size() > 1 or gpus > 1 or is_sharded(model),
        "rows meet in the model's experts": num_experts(config) is not None,
        "`probes.target_modules` names an embedding": _adapts_an_embedding(model, settings.target_modules or ()),
        f"`trainer.optim` is {optimizer}": optimizer not in _ELEMENTWISE,
        f"`trainer.{', '.join(asked)}` is set": bool(asked),
    }
    return next((why for why, so in told.items() if so), None)


def _adapts_an_embedding(model: nn.Module, names: Sequence[str]) -> bool:
    return any(
        isinstance(module, nn.Embedding) and any(path == name or path.endswith(f".{name}") for name in names)
        for path, module in model.named_modules()
    )


def train_at_once(tasks: Sequence[ProbeTask], runtime: ProbeRuntime, parts: Path, *, key: str) -> list[TrainingTotals]:
    """Train P probes to their common stop and keep them in their folders; return tokens and FLOPs of each.

    Args:
        tasks: Alike but for name and mixture.
        runtime: See `why_one_by_one`.
        parts: Folder of their common checkpoints.
        key: Of the whole run of all; checkpoints of another are not used.

    Raises:
        TrainingError: One of them diverged.
        StoreError: A checkpoint cannot be written.
    """
    first, names, usage = tasks[0], [t.name for t in tasks], Usage()
    plans = [
        plan_training(
            runtime.rows,
            Mixture.of(task.mixture),
            steps=task.settings.num_steps,
            arguments=task.trainer,
            seed=task.seed,
        )
        for task in tasks
    ]
    title = f"probes {', '.join(t.probe for t in tasks)}"
    with torch.random.fork_rng(devices=[]), runtime.progress.task(title, first.stop) as advance:
        torch.manual_seed(first.seed)
        with ADAPTERS.attached_together(runtime.model, first.settings, names) as (model, one):
            with _own_adapters(model, names):
                spec = TrainSpec(
                    model=model,
                    dataset=_Blocks(plans, Batch.of(first.trainer).micro),
                    output_dir=parts,
                    steps=first.settings.num_steps,
                    seed=first.seed,
                    arguments=_arguments(plans, first),
                    callbacks=[
                        StepProgress(lambda done, _: advance(done, first.stop)),
                        _ClipEach(names, float(first.trainer.get("max_grad_norm", 1.0))),
                    ],
                )
                factory = partial(_trainer, num=len(tasks))
                train_adapters_until(factory, spec, first.stop, key=key, usage=usage)
            with span("keep probes", "saving"):
                for task in tasks:
                    ADAPTERS.save(model, task.name, task.out)
    length, totals = next(iter(runtime.rows.values())).sequence_length, []
    for plan in plans:
        done = plan if first.stop == first.settings.num_steps else first_steps(plan, runtime.rows, first.stop)
        totals.append(training_cost(done, usage, CAUSAL_LM, runtime.shape, length, one))
    return totals


def _arguments(plans: Sequence[TrainingPlan], task: ProbeTask) -> dict[str, Any]:
    """The trainer's, for a batch of all; gradients are clipped probe by probe."""
    micro = Batch.of(task.trainer).micro
    return {**plans[0].arguments, PER_DEVICE: micro * len(plans), "max_grad_norm": 0.0}


class _Blocks(Dataset[Any]):
    """Micro-batches of P runs side by side: the rows of the first, then those of the second, and so on."""

    def __init__(self, plans: Sequence[TrainingPlan], micro: int) -> None:
        self.plans, self.micro = plans, micro

    def __len__(self) -> int:
        return len(self.plans) * len(self.plans[0].plan)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self.plans) * self.micro)
        probe, row = divmod(place, self.micro)
        return self.plans[probe].dataset[batch * self.micro + row]


class _BlockTrainer(ChunkedTrainer):
    """Each probe's gradient is that of its own mean loss, not a P-th of it."""

    num = 1

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer`; rows are of one length, so the mean over all is the mean of the probes' means."""
        return super().compute_loss(*args, **kwargs) * self.num


def _trainer(spec: TrainSpec, num: int) -> Trainer:
    trainer = default_trainer(spec, _BlockTrainer)
    trainer.num = num
    return trainer


class _ClipEach(TrainerCallback):
    """Clips the gradient of every probe by its own norm."""

    def __init__(self, names: Sequence[str], bound: float) -> None:
        self.names, self.bound = names, bound
        self.weights: list[list[nn.Parameter]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sort the weights by probe, once."""
        trained = list(kwargs["model"].named_parameters())
        self.weights = [[p for path, p in trained if f".{name}." in path] for name in self.names]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing where the trainer's arguments ask for no clipping."""
        for weights in self.weights if self.bound > 0 else ():
            nn.utils.clip_grad_norm_(weights, self.bound)


@contextmanager
def _own_adapters(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """Let block k of a batch's rows pass through the adapter `names[k]` of every layer, instead of all rows through all of them."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        vars(layer)["forward"] = partial(_in_blocks, layer, tuple(names))
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _in_blocks(layer: Any, names: tuple[str, ...], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`W x + s B_k A_k x` for the rows of block k; x: (P b, ..., in)."""
    result: torch.Tensor = layer.base_layer(x, *args, **kwargs)
    down = torch.stack([layer.lora_A[n].weight for n in names])  # (P, r, in)
    up = torch.stack([layer.lora_B[n].weight for n in names])  # (P, out, r)
    rows = layer.lora_dropout[names[0]](x.to(down.dtype)).reshape(len(names), -1, x.shape[-1])
    added = torch.bmm(torch.bmm(rows, down.mT), up.mT) * layer.scaling[names[0]]
    return (result + added.reshape(result.shape)).to(result.dtype)
