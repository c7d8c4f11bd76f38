"""Settings of executors. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from opmix.settings import Count, Processes, settings


@settings
class ExecutorSettings:
    """Where probes are trained and proxies evaluated; a plain string in YAML is `kind`. Results do not depend on it."""

    kind: Literal["local"] = "local"
    """`local`: processes of this machine."""
    slots: Processes = 1
    """Tasks at once: one GPU each where the model is on GPUs, else one thread each (`OMP_NUM_THREADS` where it is set). 1: one after
    another, in this process."""
    tries: Count = 3
    """How often a task is begun whose process dies, in all; each goes on from the last checkpoint."""
    save_every: Count = 100
    """Optimizer steps between the checkpoints of a probe that another process trains."""

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.slots > 1

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"kind": value} if isinstance(value, str) else value
