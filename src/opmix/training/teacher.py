"""Self-distillation's teacher: the student's own trainable weights of earlier, put in its place for a forward pass.

One way for full training and for adapters: only what is trained differs between teacher and student, so a copy of that is all there is to
keep (with an adapter, a few megabytes), other adapters on the model are not touched, and the teacher of step 0 is the student in memory,
not what a checkpoint's name leads to. An adapter's two factors follow one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from opmix.errors import StoreError

FILE = "teacher.safetensors"


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
        kept = {name: p.data for name, p in self._student.items()}
        try:
            for name, p in self._student.items():
                p.data = self._weights[name].to(p.dtype)
            yield
        finally:
            for name, p in self._student.items():
                p.data = kept[name]

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
