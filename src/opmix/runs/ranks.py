"""Who else runs this program: the ranks that `torchrun` or `accelerate launch` started, and what they must agree on.

All ranks run the same program in the same order; the first one writes. Imports torch only where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from opmix.compute.budget import world_size
from opmix.errors import ConfigError, TrainingError, error_named

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_T = TypeVar("_T")

_PATIENCE = timedelta(hours=12)
"""How long ranks wait for one that works alone; a rank that dies ends the others at once (the launcher does)."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; every method but `first` must be called by all of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def shared(self, value: _T) -> _T:
        """The first rank's value, on all; pickled on the way, so that all go on with the same."""
        if self.size == 1:
            return value
        told: Any = self.collected(value if self.first else None)[0]
        return told

    def collected(self, value: _T) -> list[_T]:
        """Every rank's value in rank order, on all."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gathered(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Every rank's rows end to end in rank order, on all."""
        if self.size == 1:
            return rows
        import numpy as np

        return np.concatenate(self.collected(rows))

    def own(self, num: int) -> slice:
        """This rank's part of `num` rows, such that `gathered` gives all; may be empty."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def together(self) -> None:
        """Wait until every rank is here."""
        self.collected(None)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails on one rank fails on all: the others raise the same error, with the rank's number.

        For work in which ranks do not wait for each other, such as writing files.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # whatever it is, the others must hear of it
            error = caught
        said = self.collected(None if error is None else (type(error).__name__, str(error)))
        if error is not None:
            raise error
        for rank, failure in enumerate(said):
            if failure is not None:
                raise error_named(failure[0], f"rank {rank}: {failure[1]}")

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes first, so that the others find what it has left on disk."""
        if not self.first:
            self.together()
        try:
            yield
        finally:
            if self.first:
                self.together()


ALONE = Ranks()


def ranks_here() -> Ranks:
    """The ranks of this run; where there are several they are connected, gloo for the CPU and for messages, NCCL for GPUs.

    Raises:
        TrainingError: The launcher's variables are there and the other ranks are not.
    """
    size = world_size()
    if size == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"WORLD_SIZE is {size}, but the ranks cannot be connected ({error}); start the command with `torchrun` "
                "or `accelerate launch`, or unset WORLD_SIZE"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size())


def part() -> None:
    """Leave the other ranks when the work is over; processes that do not may hang at their end."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def refuse_ranks(what: str, instead: str) -> None:
    """For what one process does.

    Raises:
        ConfigError: There are several ranks.
    """
    if world_size() > 1:
        raise ConfigError(f"WORLD_SIZE is {world_size()}; {what} drives one process: {instead}")
