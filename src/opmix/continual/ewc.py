"""Elastic weight consolidation: weights that old data depend on are held where they were.

Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", arXiv 1612.00796, equation 3:
L(theta) = L_new(theta) + sum_i lambda / 2 F_i (theta_i - theta*_i)^2. Over several stages *online* EWC (Schwarz et al. 2018, "Progress
& Compress", arXiv 1805.06370, section 3.3): one Fisher, F <- gamma F + F_last, and one centre, the weights of the stage's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer

from opmix.continual.base import StageContext
from opmix.continual.memory import batches_of, book, logits_of, looking_back, planned, summed_nll
from opmix.continual.stepping import NewOnly, stepping_trainer, trained_parameters
from opmix.errors import ConfigError, StoreError
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_fingerprint
from opmix.training.factory import TrainSpec

FILE = "fisher.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Ewc(NewOnly):
    """Online EWC with a diagonal Fisher information *per token* of old data.

    L_new is a mean over tokens, so `strength` is the number of old tokens that count for one new token: Bayes' rule on N old tokens and n
    new ones says N / n. (The papers' lambdas belong to losses and Fishers of other units and cannot be taken over.) The penalty's gradient
    is added once a step, in float32, before clipping. What the first stage of a life cannot have is a penalty: it trains as ever.
    """

    strength: float = 10.0
    """lambda. Published: 400 (Atari games; A-GEM's authors: 10 on images); ours is an assumption: as after ten times as many tokens."""
    sequences: int = 128
    """Old rows that the Fisher is estimated on, in the old mixture's shares; the papers do not say how many."""
    labels: Literal["sampled", "data"] = "sampled"
    """`sampled`: the model's own predictions, the Fisher information proper; `data`: the next tokens as they are, the empirical Fisher."""
    decay: float = 0.95
    """gamma: of the Fisher of earlier stages. The paper tunes it (below 1: gracefully forgetting); ours is an assumption."""

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ConfigError(f"strength is {self.strength}; expected at least 0")
        if self.sequences < 1:
            raise ConfigError(f"sequences is {self.sequences}; expected at least 1 row")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}; expected 0 to 1")

    def begin(self, model: Any, lesson: StageContext) -> Any:
        """Estimate the Fisher of what was learned last and leave it, with that of earlier stages, in the lesson's folder."""
        if not lesson.old:
            return model
        mixture = lesson.old_mixture or Mixture.uniform(list(lesson.old))
        rows = planned(lesson, mixture.on(tuple(lesson.old)), self.sequences)
        earlier = None if lesson.before is None else lesson.before / FILE
        earlier = earlier if earlier is not None and earlier.exists() else None
        parts = (self.sequences, self.labels, self.decay, lesson.seed, dict(mixture), earlier is None)
        key = "|".join(map(str, (model_fingerprint(model), *parts)))
        if _key_of(lesson.folder / FILE) != key:
            found = fisher(model, lesson, rows, self.labels)
            if earlier is not None:
                for name, values in read_fisher(earlier, found).items():
                    found[name].add_(values, alpha=self.decay)
            _write(found, lesson.folder / FILE, key)
        book(
            lesson, sum(len(row["input_ids"]) for row in rows)
        )  # found again on resuming: the checkpoint's count replaces it
        return model

    def trainer(self, spec: TrainSpec, lesson: StageContext) -> Trainer:
        """See `Learner`."""
        if not lesson.old:
            return stepping_trainer(spec, None)
        centre = {name: p.detach().float().clone() for name, p in trained_parameters(spec.model).items()}
        held = read_fisher(lesson.folder / FILE, centre)

        def correct(model: Any, step: int, scale: float) -> None:
            pull(trained_parameters(spec.model), centre, held, self.strength * scale)

        return stepping_trainer(spec, correct)


def fisher(model: nn.Module, lesson: StageContext, rows: list[Any], labels: Literal["sampled", "data"]) -> Tensors:
    """Diagonal Fisher information per supervised token, float32, by parameter.

    A row at a time: under the model's own labels the gradients of a row's tokens are uncorrelated, so the square of their sum is on average
    the sum of their squares, and no pass per token is needed. With `data` labels that is an approximation.
    """
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained_parameters(model).items()}
    tokens = 0
    with looking_back(model, lesson.seed) as parameters:
        for batch in batches_of(lesson, rows, 1, parameters[0].device):
            logits, targets = logits_of(model, batch), batch["labels"][:, 1:]
            if labels == "sampled":
                drawn = torch.multinomial(logits.detach().flatten(0, 1).softmax(dim=-1), 1).view_as(targets)
                targets = torch.where(targets == -100, targets, drawn)
            summed_nll(logits, targets).backward()
            tokens += int((targets != -100).sum())
            for p, values in zip(parameters, total.values(), strict=True):
                if p.grad is not None:
                    values.add_(p.grad.float().square())
                p.grad = None
    return {name: values / max(tokens, 1) for name, values in total.items()}


def pull(parameters: dict[str, nn.Parameter], centre: Tensors, held: Tensors, strength: float) -> None:
    """Add the penalty's gradient, `strength F (theta - theta*)`."""
    for name, p in parameters.items():
        if p.grad is not None:
            p.grad.add_((held[name] * (p.detach().float() - centre[name])).to(p.grad.dtype), alpha=strength)


def read_fisher(path: Path, like: Tensors) -> Tensors:
    """What `begin` left, beside the tensors of `like`.

    Raises:
        StoreError: The file is missing, damaged or of another model.
    """
    try:
        found = load_file(path)
        return {name: found[name].to(values.device).reshape(values.shape) for name, values in like.items()}
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise StoreError(
            f"{path}: not the Fisher information of this model ({error}); train the stage before again"
        ) from error


def _key_of(path: Path) -> str | None:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("key")
    except (OSError, SafetensorError):
        return None


def _write(values: Tensors, path: Path, key: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partly = path.with_suffix(".part")
    save_file({name: v.contiguous() for name, v in values.items()}, partly, metadata={"key": key})
    partly.replace(path)
