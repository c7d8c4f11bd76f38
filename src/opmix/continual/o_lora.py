"""Orthogonal low-rank adaptation: every stage learns in a low-rank subspace orthogonal to those of the stages before.

Wang et al. 2023, "Orthogonal Subspace Learning for Language Model Continual Learning", arXiv 2310.14152, equations 5 to 8:
L + lambda_1 sum_{i<t} L_orth(A_i, A_t) with L_orth the sum of squares of A_i A_t' (rows of A: LoRA's inputs); earlier adapters are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from opmix.continual.base import StageContext
from opmix.continual.stepping import NewOnly, stepping_trainer
from opmix.errors import ConfigError
from opmix.models.layers import base_model_of, lora_targets
from opmix.training.factory import TrainSpec

FILE = "o_lora.safetensors"
_NAME = "default"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class OLora(NewOnly):
    """O-LoRA; a stage's adapter is merged at its end, and the rows of its A are left for the stages to come.

    Merging changes nothing of what is computed, up to rounding (the paper's section 3.4 says so too), and keeps the model plain.
    """

    rank: int = 8
    """Published: 8."""
    alpha: float = 32.0
    """LoRA's scale is alpha / rank. Published code: 32, with a dropout of 0.1 that is left out here."""
    targets: tuple[str, ...] | None = None
    """Layers; None: all linear ones, as opmix's probes. Published: attention's query and value."""
    strength: float = 0.5
    """lambda_1. Published: 0.5 for most task orders."""
    learning_rate: float | None = 1e-3
    """Highest rate, in place of the stage's, which is that of full training; None: the stage's. Published: 1e-3."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; expected at least 1")
        if self.strength < 0:
            raise ConfigError(f"strength is {self.strength}; expected at least 0")

    @property
    def in_place(self) -> bool:
        """No: an adapter around it."""
        return False

    def begin(self, model: Any, lesson: StageContext) -> Any:
        """A new adapter around the model."""
        targets = list(self.targets or lora_targets(model))
        convolution = any(type(module).__name__ == "Conv1D" for module in model.modules())
        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets,
            fan_in_fan_out=convolution,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(lesson.seed)
            return get_peft_model(model, settings, adapter_name=_NAME)

    def trainer(self, spec: TrainSpec, lesson: StageContext) -> Trainer:
        """See `Learner`."""
        if self.learning_rate is not None:
            spec = replace(spec, arguments={**spec.arguments, "learning_rate": self.learning_rate})
        earlier = earlier_rows(lesson, spec.model)
        pairs = [
            (module.lora_A[_NAME].weight, earlier[place]) for place, module in _layers(spec.model) if place in earlier
        ]
        adapter = sum(p.numel() for p in spec.model.parameters() if p.requires_grad)
        per_step = sum(4.0 * before.numel() * new.shape[0] for new, before in pairs)
        per_token = lesson.shape.train_lora(lesson.sequence_length, adapter)

        def correct(model: Any, step: int, scale: float) -> None:
            for new, before in pairs:
                repel(new, before, self.strength * scale)
            lesson.usage.book(flops=per_step)

        def count(tokens: int) -> None:  # less than the full training that would be told from the rows
            lesson.usage.flops = (lesson.usage.flops or 0.0) + tokens * per_token

        return stepping_trainer(spec, correct, count)

    def end(self, model: Any, lesson: StageContext) -> Any:
        """Merge; leave all A's so far."""
        rows = earlier_rows(lesson, model)
        for place, module in _layers(model):
            new = module.lora_A[_NAME].weight.detach().float()
            rows[place] = torch.cat([rows[place], new]) if place in rows else new.clone()
            merge(module)
        lesson.folder.mkdir(parents=True, exist_ok=True)
        save_file({place: values.contiguous() for place, values in rows.items()}, lesson.folder / FILE)
        return model.unload()


def earlier_rows(lesson: StageContext, model: nn.Module) -> Tensors:
    """Rows of A of all stages before, (R, inputs) float32 by layer; none before the first."""
    path = None if lesson.before is None else lesson.before / FILE
    if path is None or not path.exists():
        return {}
    device = next(model.parameters()).device
    return {place: values.to(device) for place, values in load_file(path).items()}


def repel(new: nn.Parameter, before: torch.Tensor, strength: float) -> None:
    """Add the gradient of `strength |before new'|^2` to that of `new` (r, inputs); `before` is (R, inputs)."""
    if new.grad is not None:
        products = new.detach().float() @ before.T
        new.grad.add_((products @ before).to(new.grad.dtype), alpha=2.0 * strength)


def merge(module: Any) -> None:
    """Add a layer's `s B A` to its weight, computed in float32 and rounded once."""
    down, up = module.lora_A[_NAME].weight.detach().float(), module.lora_B[_NAME].weight.detach().float()
    delta = float(module.scaling[_NAME]) * (up @ down)
    weight = module.get_base_layer().weight
    with torch.no_grad():
        weight.copy_(weight.float() + (delta.T if module.fan_in_fan_out else delta))


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for place, module in base_model_of(model).named_modules():
        if isinstance(module, LoraLayer) and _NAME in module.lora_A:
            yield place, module
