"""Full training of a model that is spread over the ranks (FSDP2, by accelerate): what it is told, and what its checkpoints hold.

A checkpoint holds each rank's part of weights and moments, for any number of ranks; the one that a stretch ends with holds the model as
an ordinary one too, which everything else loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from opmix.compute.budget import FSDP
from opmix.errors import ConfigError, StoreError
from opmix.models.sharded import is_sharded
from opmix.runs.ranks import ranks_here

_MODEL = "pytorch_model_fsdp"
_OF_ACCELERATE = ("ACCELERATE_", "FSDP_")


def spread_on_cpus(arguments: Any) -> None:
    """Let accelerate take its FSDP path on ranks without GPUs, where it would silently hold the whole model on each.

    The path itself works on CPUs (gloo); only the kind of ranks that it asks for is another.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    arguments.device  # noqa: B018  (makes the state that accelerate looks at)
    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_GPU


def check_spread(trainer: Trainer) -> None:
    """Refuse a Trainer that would hold the whole model on every rank though it was told to spread it.

    Raises:
        ConfigError: It would.
    """
    if not trainer.is_fsdp_enabled:
        raise ConfigError(
            f"trainer.{FSDP}: true, but accelerate holds the whole model on every rank here "
            f"({trainer.accelerator.distributed_type}); expected ranks that torchrun started, one a GPU"
        )


@contextmanager
def accelerate_forgets() -> Iterator[None]:
    """What a Trainer tells accelerate through the environment is over with its run: else the next one would be spread too."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_OF_ACCELERATE)}
    try:
        yield
    finally:
        for name in [n for n in os.environ if n.startswith(_OF_ACCELERATE)]:
            del os.environ[name]
        os.environ.update(before)


class WholeModel(TrainerCallback):
    """Puts the model as an ordinary one into the checkpoint of a step, where ranks hold parts of it; called before the marker is."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All ranks gather, the first one writes."""
        model = kwargs["model"]
        if state.global_step != self.step or not is_sharded(model):
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, ranks = get_model_state_dict(model, options=options), ranks_here()
        with ranks.agreed():
            if ranks.first:
                model.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}", state_dict=weights)


def check_same_kind(checkpoint: Path, spread: bool) -> None:
    """Refuse to go on from a checkpoint of the other kind.

    Raises:
        StoreError: It was written by ranks that hold parts and these hold all, or the other way round.
    """
    parts = any(checkpoint.glob(f"{_MODEL}*"))
    if parts != spread:
        began, here = ("with", "without") if parts else ("without", "with")
        raise StoreError(
            f"{checkpoint}: this stage was begun {began} a model spread over ranks (trainer.fsdp) and would go on "
            f"{here}; start it as it was begun, or delete {checkpoint.parent} to have the stage trained again"
        )
