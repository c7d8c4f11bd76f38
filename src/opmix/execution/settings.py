"""Settings of executors. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from string import Formatter
from typing import Annotated, Any, Literal

from opmix.errors import ConfigError
from opmix.settings import Bounds, Count, Positive, Processes, settings

_STARTING = {"command", "name", "folder", "log", "attempt"}
"""What a template of `launch` that starts a task may name."""
_AFTERWARDS = {"job", "name", "attempt"}


@settings
class Resources:
    """What one task is given by a scheduler."""

    gpus: Annotated[int, Bounds(ge=0, le=64)] | None = None
    """Of one node. None: one where the model is on a GPU here, else none. Several: the task is done by as many ranks, one a GPU."""
    cpus: Count = 1
    """Cores, and threads of a task without a GPU where `OMP_NUM_THREADS` is not set."""
    memory_gb: Positive | None = None
    """None: whatever the scheduler gives."""
    minutes: Count | None = None
    """Slurm's time limit of a task; None: the partition's. A task that meets it is begun again from its last checkpoint."""


@settings
class SlurmSettings:
    """How a task becomes a job of Slurm."""

    partition: str | None = None
    account: str | None = None
    options: tuple[str, ...] = ()
    """Further options of `sbatch`, such as `--qos=high`."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before the task's command, such as `module load cuda`."""
    poll_seconds: Positive = 5.0
    """Between two looks at `squeue`."""


@settings
class RaySettings:
    """Which cluster of Ray."""

    address: str = "auto"
    """`HOST:PORT`, `ray://...`, or `auto`: the one that this machine belongs to."""


@settings
class LaunchSettings:
    """Commands of any other scheduler, for the shell; a plain string in YAML is `run`.

    Filled in: `{command}` (the task's own, with its arguments quoted), `{name}` (of the task), `{attempt}` (a short word, different each
    time), `{folder}` (of the run), `{log}`; in `poll` and `cancel`: `{job}`, `{name}`, `{attempt}`. A brace of one's own is written twice.
    """

    run: str | None = None
    """Ends when the task has ended, with its exit code, such as `srun --gpus=1 {command}`."""
    submit: str | None = None
    """Instead of `run`: returns at once; the last word that it prints is the job."""
    poll: str | None = None
    """Exit code 0 while the job waits or runs, 1 when it is over; any other: not known, asked again."""
    cancel: str | None = None
    """None: a job that nobody waits for any more ends by itself, some seconds later."""
    poll_seconds: Positive = 5.0
    """Between two looks at what was submitted."""

    def __post_init__(self) -> None:
        problems = []
        if (self.run is None) == (self.submit is None):
            problems.append("run: expected either run (a command that waits) or submit (one that does not)")
        if (self.submit is None) != (self.poll is None):
            problems.append("poll: expected with submit, and only with it: it says whether the job is over")
        if self.cancel is not None and self.submit is None:
            problems.append("cancel: expected with submit only; what `run` started is stopped by a signal")
        for name in ("run", "submit", "poll", "cancel"):
            problems += _problems_of(name, getattr(self, name))
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"run": value} if isinstance(value, str) else value


def _problems_of(name: str, template: str | None) -> list[str]:
    """What is wrong with a template."""
    if template is None:
        return []
    known = _STARTING if name in ("run", "submit") else _AFTERWARDS
    try:
        named = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        return [f"{name}: {template!r} cannot be read ({error}); a brace of one's own is written twice"]
    problems = []
    if wrong := sorted(named - known):
        problems.append(
            f"{name}: {{{wrong[0]}}} is not known; expected {', '.join(f'{{{word}}}' for word in sorted(known))} "
            "(a brace of one's own is written twice)"
        )
    if name in ("run", "submit") and not {"command", "name"} & named:
        problems.append(f"{name}: {template!r} does not say what to do; expected {{command}} in it")
    return problems


@settings
class ExecutorSettings:
    """Where probes are trained, proxies evaluated and lives lived; a plain string in YAML is `kind`. Results do not depend on it."""

    kind: Literal["local", "launch", "slurm", "ray"] = "local"
    """`local`: processes of this machine; else a process for each task, started by Slurm, by Ray, or as `launch` says."""
    slots: Processes = 1
    """Tasks at once. `local`: one GPU each where the model is on GPUs, else one thread each (`OMP_NUM_THREADS` where it is set); 1: one
    after another, in this process."""
    tries: Count = 3
    """How often a task is begun whose process dies, in all; each goes on from the last checkpoint."""
    save_every: Count = 100
    """Optimizer steps between the checkpoints of a probe that another process trains."""
    resources: Resources = Resources()
    """Of a task; for `slurm` and `ray`. With `launch` its command asks for them, and is told here how many GPUs there are."""
    slurm: SlurmSettings = SlurmSettings()
    ray: RaySettings = RaySettings()
    launch: LaunchSettings | None = None

    def __post_init__(self) -> None:
        kinds = {"slurm": ["slurm"], "ray": ["ray"], "launch": ["launch"], "resources": ["slurm", "ray", "launch"]}
        unasked = {item.name: item.default for item in fields(self) if item.name in kinds}
        problems = [
            f"{name}: given, but kind is {self.kind}; expected it with kind {' or '.join(kinds[name])} only"
            for name, default in unasked.items()
            if self.kind not in kinds[name] and getattr(self, name) != default
        ]
        if self.kind == "launch":
            for name in ("memory_gb", "minutes"):
                if getattr(self.resources, name) is not None:
                    problems.append(f"resources.{name}: opmix cannot ask {self.kind} for it; say it in executor.launch")
        if self.kind == "launch" and self.launch is None:
            problems.append('launch: expected the command that starts a task, such as "srun {command}"')
        if problems:
            raise ConfigError(problems)

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.slots > 1 or self.kind != "local"

    @property
    def ranks(self) -> int:
        """Processes that do one task together."""
        return max(1, self.resources.gpus or 1)

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"kind": value} if isinstance(value, str) else value
