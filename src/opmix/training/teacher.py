"""Self-distillation's teacher: the student's own trainable weights of earlier, put in its place for a forward pass.

One way for full training and for adapters: only what is trained differs between teacher and student, so a copy of that is all there is to
keep (with an adapter, a few megabytes), other adapters on the model are not touched, and the teacher of step 0 is the student in memory,
not what a checkpoint's name leads to. An adapter's two factors follow one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from opmix.errors import StoreError

FILE = "teacher.safetensors"


@contextmanager
def put_in_place(values: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> Iterator[None]:
    """Let parameters have other values inside; not for passes whose gradients are still needed."""
    kept = [p.data for p, _ in values]
    try:
        for p, value in values:
            p.data = value
        yield
    finally:
        for (p, _), own in zip(values, kept, strict=True):
            p.data = own


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Let the weights of linear layers be what autocast to `dtype` makes of them; None: nothing is cast.

    Autocast casts them in every forward pass anew, which in writing is for every token. Only linear layers, and not those that share an
    embedding's weight: autocast leaves all else in float32, so that what is written is the same.
    """
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in shared]
    values = [] if dtype is None else [(w, w.detach().to(dtype)) for w in weights if w.dtype == torch.float32]
    with put_in_place(values):
        yield


class Teacher:
    """Weights that follow those of `model` by `rate` a step; 0: they stay where they started."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self._student = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # float32: in bfloat16 a hundredth of a small change is rounded away.
        self._weights = {name: p.detach().float().clone() for name, p in self._student.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model be the teacher inside; not for passes whose gradients are still needed."""
        with put_in_place([(p, self._weights[name].to(p.dtype)) for name, p in self._student.items()]):
            yield

    def follow(self) -> None:
        """One step towards the student."""
        for name, p in self._student.items() if self.rate else ():
            self._weights[name].lerp_(p.detach().float(), self.rate)

    def save(self, folder: Path) -> None:
        """Write the weights beside a checkpoint."""
        save_file({name: w.contiguous() for name, w in self._weights.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            StoreError: The file is missing or of another model.
        """
        try:
            found = load_file(folder / FILE)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{folder / FILE}: cannot be read ({error}); expected the teacher's weights; train the stage again"
            ) from error
        if found.keys() != self._weights.keys():
            raise StoreError(f"{folder / FILE}: holds other weights than this model trains; train the stage again")
        for name, weight in found.items():
            self._weights[name].copy_(weight)


class TeacherFollows(TrainerCallback):
    """Moves the teacher after every step, and saves it with every checkpoint."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow."""
        self.teacher.follow()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save beside the Trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.teacher.save(folder)
