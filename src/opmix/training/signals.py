"""What a run tells a mixer of itself: losses by domain, excess over a reference, held-out losses, gradients. The run does not notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)

from opmix.compute.flops import ModelShape
from opmix.data import MixtureDataset, MixturePlan, Rows, pad_rows
from opmix.data.choice import ChoiceRows
from opmix.data.rows import pad_right
from opmix.data.sampler import draw
from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray
from opmix.models.layers import model_shape
from opmix.protocols.online_mixer import Signal
from opmix.training.objectives import Usage

_APART = 104_729
"""Added to a run's seed where rows are drawn to be measured, so that they are not those it trains on next."""


@dataclass(frozen=True, kw_only=True)
class SignalSources:
    """What signals are made from, beside the training batches themselves."""

    evaluate: Callable[[Any], FloatArray] | None = None
    """Held-out losses (E,) of a model, in the order of the run's domains, or of what is `served`; for `held_out`."""
    evaluate_tokens: float = 0.0
    """Tokens that one call reads, to be charged."""
    held_out: Mapping[str, Rows] | None = None
    """Held-out rows by domain, or by what is `served`; for `gradients`."""
    served: Mapping[str, float] | None = None
    """Evaluation sets that the mixture is for and what each counts; None: the run's domains, all alike."""
    reference: Any = None
    """A model on the same device; for `excess`."""
    gradient_rows: int = 8
    """Rows of each domain that a gradient is taken on, training and held-out alike."""

    def check(self, signals: frozenset[Signal], domains: Sequence[str]) -> None:
        """Refuse a run that cannot tell what its mixer wants to know.

        Raises:
            ConfigError: Something is missing.
        """
        rows = self.held_out is not None and all(n in self.held_out for n in self.served or domains)
        there = {
            "train_loss": True,
            "held_out": self.evaluate is not None,
            "gradients": rows,
            "excess": self.reference is not None,
        }
        names = {"held_out": "evaluate", "gradients": "held_out", "excess": "reference"}
        if missing := [s for s in sorted(signals) if not there[s]]:
            raise ConfigError(
                [f"signal {s!r}: this run cannot tell it; expected `SignalSources({names[s]}=...)`" for s in missing]
            )


@dataclass
class Sums:
    """Summed nats and tokens of a segment's training batches, by domain, (D,)."""

    loss: FloatArray
    excess: FloatArray
    tokens: FloatArray

    @classmethod
    def of(cls, num: int) -> Sums:
        """Nothing yet."""
        return cls(*(np.zeros(num) for _ in range(3)))

    def means(self, what: str) -> FloatArray:
        """`loss` or `excess` per token, NaN where there was none, (D,)."""
        sums: FloatArray = getattr(self, what)
        return np.divide(sums, self.tokens, out=np.full(len(sums), np.nan), where=self.tokens > 0)

    def json(self) -> dict[str, list[float]]:
        """As lists."""
        return {name: array.tolist() for name, array in vars(self).items()}

    @classmethod
    def read(cls, kept: Mapping[str, list[float]]) -> Sums:
        """What `json` gave."""
        return cls(**{name: np.array(values) for name, values in kept.items()})


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """Row by row, nats of every token that is predicted, (T - 1,), 0 where it is not supervised."""
    for row, wanted in zip(logits, labels.to(logits.device), strict=True):
        yield F.cross_entropy(row[:-1].float(), wanted[1:], ignore_index=-100, reduction="none")


def inputs_of(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What a model takes of a batch, without labels."""
    return {k: v.to(device) for k, v in batch.items() if k in ("input_ids", "position_ids")}


@dataclass(kw_only=True)
class Gradients:
    """Inner products of gradients of training and held-out batches; a question's loss is that of its right option among all.

    Gradients are taken with dropout off, in the model's own precision, and summed in float32; those of the held-out sets are kept at
    once, E times the trainable weights in float32.
    """

    train: Mapping[str, Rows]
    held_out: Mapping[str, Rows]
    num_rows: int
    batch_rows: int
    seed: int
    document_mask: bool
    charge: Callable[[float], None]
    """Told the tokens of every forward and backward pass."""
    served: Sequence[str] = ()
    """Names of the held-out sets, E; none: the training domains."""
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(self.train)
        self.served = tuple(self.served) or self.names

    def measure(self, model: Any, decision: int) -> tuple[FloatArray, FloatArray]:
        """Inner products (D, E) and norms of the training gradients (D,); `decision` numbers the rows."""
        served = [self._gradient(model, self.held_out[n], n, decision) for n in self.served]
        products, norms = np.zeros((len(self.names), len(served))), np.zeros(len(self.names))
        for k, name in enumerate(self.names):
            own = self._gradient(model, self.train[name], name, decision)
            products[k] = [inner(own, other) for other in served]
            norms[k] = np.sqrt(inner(own, own))
        return products, norms

    def _gradient(self, model: Any, rows: Rows, name: str, decision: int) -> list[torch.Tensor]:
        num = min(self.num_rows, len(rows))
        row = draw(name, self.seed + _APART, decision * num, num, len(rows))
        if isinstance(rows, ChoiceRows) and rows.compared:
            return question_gradient(model, [self._options(rows, int(i)) for i in row])
        plan = MixturePlan((name,), np.zeros(num, dtype=np.int16), row, (len(rows),), self.seed)
        data = MixtureDataset({name: rows}, plan, document_mask=self.document_mask)
        parts = [
            pad_rows([data[i] for i in range(at, min(at + self.batch_rows, num))])
            for at in range(0, num, self.batch_rows)
        ]
        self.charge(float(sum(part["input_ids"].numel() for part in parts)))
        return gradient(model, parts)

    def _options(self, rows: ChoiceRows, question: int) -> dict[str, torch.Tensor]:
        """A question's options as a batch, the right one first."""
        options = rows.options(question)
        padded = {
            "input_ids": pad_right([ids for ids, _ in options], "input_ids"),
            "labels": pad_right([labels for _, labels in options], "labels"),
        }
        self.charge(float(padded["input_ids"].size))
        return {key: torch.from_numpy(value) for key, value in padded.items()}


def question_gradient(model: Any, questions: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Of the mean over questions of minus the log-softmax of the first option's summed log-likelihood; see `gradient`."""

    def loss(batch: Mapping[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        nats = torch.stack([losses.sum() for losses in token_losses(logits, batch["labels"])])
        return -F.log_softmax(-nats, dim=0)[0] / len(questions)

    return _summed(model, questions, loss)


def gradient(model: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Of the mean loss per supervised token of all batches, by trainable parameter, float32; `.grad` is left alone."""
    total = max(1, sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches))

    def loss(batch: Mapping[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        return torch.stack([losses.sum() for losses in token_losses(logits, batch["labels"])]).sum() / total

    return _summed(model, batches, loss)


def _summed(
    model: Any,
    batches: Sequence[Mapping[str, torch.Tensor]],
    loss: Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    weights = [p for p in model.parameters() if p.requires_grad]
    device = weights[0].device
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in weights]
    for batch in batches:
        logits = model(**inputs_of(batch, device), use_cache=False).logits
        for kept, part in zip(sums, torch.autograd.grad(loss(batch, logits), weights, allow_unused=True), strict=True):
            if part is not None:
                kept += part.float()
    return sums


def inner(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Inner product of two gradients."""
    return float(sum(float(torch.dot(a.flatten(), b.flatten())) for a, b in zip(one, other, strict=True)))


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Inside, the model is in eval mode and generators may draw; afterwards modes and generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    # The legacy generator is what the Trainer seeds.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for module, training in modes:
            module.training = training


class PassCounter:
    """Books passes of a model, or of its reference, that only serve the mixer."""

    def __init__(self, usage: Usage, model: Any, length: int, reference: Any = None) -> None:
        self._usage, self._length, self._shape = usage, length, model_shape(model)
        self._reference: ModelShape | None = None if reference is None else model_shape(reference)

    def forward(self, tokens: float, *, reference: bool = False) -> None:
        """A forward pass, of the model or of the reference."""
        shape = self._reference if reference and self._reference is not None else self._shape
        self._book(tokens, shape.forward(self._length))

    def gradient(self, tokens: float) -> None:
        """A forward and a backward pass."""
        self._book(tokens, self._shape.train(self._length))

    def _book(self, tokens: float, each: float) -> None:
        self._usage.book(tokens=tokens, flops=tokens * each)
