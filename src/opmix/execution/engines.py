"""The executor that settings ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from opmix.execution.commands import Submitted, Waiting
from opmix.execution.jobs import Engine, JobExecutor, job_environment
from opmix.execution.local import LocalExecutor
from opmix.execution.on_ray import OnRay
from opmix.execution.settings import ExecutorSettings
from opmix.execution.slurm import Slurm


def gpus_of(wanted: ExecutorSettings, device: str) -> int:
    """GPUs of a task whose model is on a device of that type (`cpu`, `cuda`) here."""
    asked = wanted.resources.gpus
    return int(device == "cuda") if asked is None else asked


def engine_of(wanted: ExecutorSettings, device: str) -> Engine | None:
    """What starts a process for each task; None: this machine's processes stay for many.

    Args:
        wanted: The settings.
        device: Type of the device that the model is on here.
    """
    gpus = gpus_of(wanted, device)
    if wanted.kind == "slurm":
        return Slurm(wanted.slurm, wanted.resources, gpus)
    if wanted.kind == "ray":
        return OnRay(wanted.ray, wanted.resources, gpus)
    if wanted.launch is None:
        return None
    return Submitted(wanted.launch) if wanted.launch.run is None else Waiting(wanted.launch.run)


def executor_of(
    wanted: ExecutorSettings, *, device: str, devices: Sequence[str], prepare: Callable[[], None]
) -> LocalExecutor | JobExecutor:
    """Make the executor; its `close` ends it.

    Args:
        wanted: The settings.
        device: Type of the device that the model is on here.
        devices: GPU of each slot of this machine; empty: none.
        prepare: Called once, before the first process is started.

    Raises:
        ConfigError: The engine is not here, or does not give what is asked for.
    """
    engine = engine_of(wanted, device)
    if engine is None:
        return LocalExecutor(wanted.slots, devices=devices, prepare=prepare)
    engine.check()
    environment = job_environment(wanted.resources.cpus, gpus_of(wanted, device))
    return JobExecutor(
        engine, wanted.slots, environment=environment, prepare=prepare, command=task_command(wanted.ranks)
    )


def task_command(ranks: int) -> tuple[str, ...]:
    """What does a task: a process, or as many ranks of one machine as it has GPUs."""
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)) if ranks > 1 else ()
    return (sys.executable, *together, "-m", "opmix", "task")
