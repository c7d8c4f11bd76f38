"""Jobs of Slurm, by its own commands: `sbatch`, `squeue`, `scancel`.

Not by submitit: it asks `sacct` how a job ended, and where accounting is off it never hears of a job that was cancelled.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress

from opmix.errors import ConfigError
from opmix.execution.attempts import JobNote
from opmix.execution.commands import answer
from opmix.execution.jobs import EngineError, Job, Over
from opmix.execution.settings import Resources, SlurmSettings

_LIVING = {"PD", "R", "CF", "CG", "S", "ST", "RQ", "RF", "RH", "RS", "RV", "SI", "SO"}
"""States of a job that is not over, as `squeue` abbreviates them; one that was queued again counts too."""
_HELD = ("launch failed requeued held", "JobHeldAdmin", "BadConstraints", "DependencyNeverSatisfied")
"""Reasons for which a job waits for ever."""
_MANY = 500  # jobs of one `scancel`


class Slurm:
    """See `Engine`.

    Args:
        wanted: Partition and options.
        resources: Of a job.
        gpus: Of a job.
    """

    kind = "slurm"
    outlives = True

    def __init__(self, wanted: SlurmSettings, resources: Resources, gpus: int) -> None:
        self._wanted, self._resources, self._gpus = wanted, resources, gpus
        self.poll_seconds = wanted.poll_seconds

    def check(self) -> str:
        """See `Engine`."""
        if missing := [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]:
            raise ConfigError(
                f"executor.kind: slurm; {', '.join(missing)} not found on this machine; start this command where "
                "jobs are submitted (a login node), or choose another executor"
            )
        try:
            ended = answer(["sbatch", "--test-only", *self._options()], told=self._script("true", {}))
        except EngineError as error:
            raise ConfigError(f"executor.kind: slurm; {error}; expected Slurm to answer") from error
        if ended.returncode:
            said = " | ".join(ended.stderr.split("\n")).strip(" |")
            raise ConfigError(
                f"executor.slurm: Slurm would refuse such a job ({' '.join(self._options())}): {said}; change "
                "executor.slurm or executor.resources"
            )
        return f"jobs of Slurm, each `sbatch {' '.join(self._options())}`"

    def _options(self) -> list[str]:
        wanted, resources = self._wanted, self._resources
        given = {
            "partition": wanted.partition,
            "account": wanted.account,
            "cpus-per-task": resources.cpus,
            "gres": f"gpu:{self._gpus}" if self._gpus else None,
            "mem": f"{round(resources.memory_gb * 1024)}M" if resources.memory_gb is not None else None,
            "time": resources.minutes,
        }
        named = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return ["--nodes=1", "--ntasks=1", *named, *wanted.options]

    def _script(self, command: str, environment: Mapping[str, str]) -> str:
        exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
        return "\n".join(["#!/bin/bash", *exports, *self._wanted.prologue, f"exec {command}", ""])

    def submit(self, job: Job) -> str:
        """See `Engine`."""
        log = str(job.log).replace("%", "%%")
        own = [f"--job-name={_name(job.attempt)}", f"--output={log}", "--open-mode=append", "--requeue", "--parsable"]
        script = self._script(shlex.join(job.command), job.environment)
        ended = answer(["sbatch", *own, *self._options()], told=script)
        if ended.returncode:
            raise EngineError(f"sbatch: {ended.stderr.strip()}")
        return ended.stdout.strip().partition(";")[0]

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        """See `Engine`."""
        asked = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%t|%N|%r"]
        ended = answer(asked)
        if ended.returncode:
            raise EngineError(f"squeue: {ended.stderr.strip()}")
        listed = {words[0]: words[1:] for line in ended.stdout.splitlines() if len(words := line.split("|", 3)) == 4}
        found = {}
        for name, note in jobs.items():
            state, node, reason = listed.get(note.job or "", ("gone", "", ""))
            place = f"job {note.job}{f' on {node}' if node else ''}"
            if state == "PD" and any(held in reason for held in _HELD):
                self.cancel({name: note})
                found[name] = Over(error=f"Slurm will not start it ({reason})", place=place)
            elif state not in _LIVING:
                found[name] = Over(error=None if state in ("CD", "gone") else _ended(state, reason), place=place)
        return found

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        """See `Engine`."""
        known = [note.job for note in jobs.values() if note.job is not None]
        with suppress(EngineError):
            for first in range(0, len(known), _MANY):
                answer(["scancel", *known[first : first + _MANY]])
            for note in jobs.values():  # it may have been submitted
                if note.job is None:
                    answer(["scancel", f"--name={_name(note.attempt)}"])

    def close(self) -> None:
        """See `Engine`."""


def _name(attempt: str) -> str:
    return f"opmix-{attempt}"


def _ended(state: str, reason: str) -> str:
    """How a job ended."""
    said = {
        "CA": "it was cancelled",
        "TO": "its time limit was reached (executor.resources.minutes)",
        "OOM": "it ran out of memory (executor.resources.memory_gb)",
        "NF": "its node was lost",
        "PR": "it gave way to another job",
        "F": "its command failed",
    }
    return f"{said.get(state, f'it ended in state {state}')}{'' if reason in ('', 'None') else f' ({reason})'}"
