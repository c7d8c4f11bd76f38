"""Executors of every kind, for one table of tests; also a driver of its own: `python executors.py KIND FOLDER NUMBER SECONDS`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import toy_worker

from opmix.execution.attempts import note_of
from opmix.execution.commands import Submitted, Waiting
from opmix.execution.fan_out import fan_out
from opmix.execution.jobs import JobExecutor, job_environment
from opmix.execution.local import LocalExecutor
from opmix.execution.on_ray import OnRay
from opmix.execution.settings import LaunchSettings, RaySettings, Resources, SlurmSettings
from opmix.execution.slurm import Slurm
from opmix.execution.tasks import Task
from opmix.progress import Silent
from opmix.runs.files import alive
from opmix.runs.store import RunStore, fingerprint

COMMAND = (sys.executable, toy_worker.__file__)
# A scheduler in three lines: a job is a file, which holds the process group and is there until it is over.
SCHEDULER = LaunchSettings(
    submit='touch {folder}/{attempt}.job; setsid sh -c "echo \\$\\$ > {folder}/{attempt}.job; {command}; rm -f {folder}/{attempt}.job"'
    " >> {log} 2>&1 & echo submitted as {folder}/{attempt}.job",
    poll="test -e {job}",
    cancel="kill -KILL -- -$(cat {job}); rm -f {job}",
    poll_seconds=0.1,
)
OUTLIVE = ("launch", "submitted", "slurm")
"""Kinds whose jobs go on when the process that started them is killed."""


def task_of(number, **said):
    key = fingerprint({"number": number})
    return Task(name=f"square-{number}", key=key, kind="square", payload={"number": number, **said})


def executor_of(kind, slots=2):
    """An executor of that kind whose processes are toys."""
    if kind == "local":
        return LocalExecutor(slots, command=COMMAND)
    engine = {
        "launch": lambda: Waiting("{command}"),
        "submitted": lambda: Submitted(SCHEDULER),
        "slurm": lambda: Slurm(SlurmSettings(poll_seconds=0.2), Resources(minutes=5), 0),
        "ray": lambda: OnRay(RaySettings(address=os.environ.get("TOY_RAY", "auto")), Resources(), 0),
    }[kind]()
    engine.check()
    late = 3.0 if kind in ("slurm", "ray") else 1.0  # records of this machine are there before their job is over
    return JobExecutor(engine, slots, environment=job_environment(1, 0), command=COMMAND, late=late)


def cancelled(kind, folder, name):
    """Somebody else stops a task: its job where there is a scheduler, its process where there is none."""
    if kind == "slurm":
        subprocess.run(["scancel", note_of(folder, name).job], check=True)
    elif kind == "submitted":
        subprocess.run(["/bin/sh", "-c", SCHEDULER.cancel.format(job=note_of(folder, name).job)], check=True)
    else:
        os.kill(pid_of(folder, name), signal.SIGKILL)


def pid_of(folder, name):
    """Of the process that does a task; 0: it has not come so far."""
    try:
        return int((folder / f"begun-{name}").read_text() or 0)
    except OSError:
        return 0


def over(pid):
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not alive(pid)


def wait_for(true, seconds=30):
    """What `true` returns, as soon as that is true."""
    before = time.monotonic()
    while not (result := true()):
        assert time.monotonic() - before < seconds
        time.sleep(0.02)
    return result


if __name__ == "__main__":
    kind, folder, number, seconds = sys.argv[1:]
    with RunStore(Path(folder)) as store:
        driven = executor_of(kind)
        store.before_release(driven.close)
        fan_out(store, [task_of(int(number), seconds=float(seconds))], driven, progress=Silent())
