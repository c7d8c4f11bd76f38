"""Engines that are commands of the user's own: one that waits for its task, or one that submits it and another that asks after it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from opmix.errors import ConfigError
from opmix.execution.attempts import JobNote
from opmix.execution.jobs import EngineError, Job, Over
from opmix.execution.settings import LaunchSettings
from opmix.runs.files import alive

_PATIENCE = 10.0  # seconds that a command is given to stop what it started
_ANSWER = 120.0  # seconds that a command may take to submit, poll or cancel
_OVER = 1  # exit code of `poll`


class Waiting:
    """Commands that wait for their task, as children of this process; a later process of this machine finds them again."""

    kind = "launch"
    outlives = True
    poll_seconds = 0.2

    def __init__(self, template: str) -> None:
        self._template = template
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def check(self) -> str:
        """See `Engine`."""
        check_syntax("executor.launch.run", self._template)
        return f"each by the command {self._template!r}"

    def submit(self, job: Job) -> str:
        """See `Engine`."""
        with job.log.open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", filled(self._template, job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **job.environment},
                start_new_session=True,  # Ctrl-C in a terminal is for whoever waits, who stops it
            )
        self._children[job.attempt] = child
        return f"{socket.gethostname()}:{child.pid}:{_began(child.pid)}"

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        """See `Engine`."""
        found = {}
        for name, note in jobs.items():
            host, pid, began = _place(note)
            child = self._children.get(note.attempt)
            if child is None and host != socket.gethostname():
                found[name] = Over(error=f"it was started on {host}, which this machine cannot ask", place=host)
            elif child is None and _began(pid) != began:
                found[name] = Over(place=f"process {pid}")
            elif child is not None and (code := child.poll()) is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                found[name] = Over(error=f"its command {how}" if code else None, place=f"process {pid}")
        return found

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        """See `Engine`."""
        groups = []
        for note in jobs.values():
            host, pid, began = _place(note)
            if note.attempt in self._children:  # also one whose start was not noted any more
                pid = self._children[note.attempt].pid
            elif host != socket.gethostname() or not pid or _began(pid) != began:
                continue
            groups.append((pid, self._children.get(note.attempt)))
            _signal(pid, signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        for pid, child in groups:
            while time.monotonic() < until and (child.poll() is None if child is not None else _began(pid)):
                time.sleep(0.02)
            _signal(pid, signal.SIGKILL)  # whatever of its group is left
            if child is not None:
                child.wait()

    def close(self) -> None:
        """See `Engine`."""


class Submitted:
    """Commands that submit a task, ask after it and cancel it."""

    kind = "launch"
    outlives = True

    def __init__(self, wanted: LaunchSettings) -> None:
        self._wanted, self.poll_seconds = wanted, wanted.poll_seconds

    def check(self) -> str:
        """See `Engine`."""
        for name in ("submit", "poll", "cancel"):
            if (template := getattr(self._wanted, name)) is not None:
                check_syntax(f"executor.launch.{name}", template)
        return f"each by the command {self._wanted.submit!r}, asked after with {self._wanted.poll!r}"

    def submit(self, job: Job) -> str:
        """See `Engine`."""
        command = filled(self._wanted.submit or "", job)
        ended = answer(["/bin/sh", "-c", command], {**os.environ, **job.environment})
        if ended.returncode:
            raise EngineError(f"{command!r} ended with code {ended.returncode}: {_said(ended)}")
        return (ended.stdout.split() or [job.attempt])[-1]

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        """See `Engine`."""
        asked = {name: self._asked(self._wanted.poll or "", name, note) for name, note in jobs.items()}
        return {name: Over() for name, ended in asked.items() if ended.returncode == _OVER}

    def _asked(self, template: str, name: str, note: JobNote) -> subprocess.CompletedProcess[str]:
        words = {"name": name, "attempt": note.attempt, "job": note.job or note.attempt}
        quoted = {word: shlex.quote(value) for word, value in words.items()}
        return answer(["/bin/sh", "-c", template.format_map(quoted)])

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        """See `Engine`."""
        for name, note in jobs.items():
            if self._wanted.cancel is not None:
                with suppress(EngineError):
                    self._asked(self._wanted.cancel, name, note)

    def close(self) -> None:
        """See `Engine`."""


def filled(template: str, job: Job) -> str:
    """A template's command for one job, each word quoted."""
    words = {"name": job.name, "attempt": job.attempt, "folder": str(job.folder), "log": str(job.log)}
    return template.format(command=shlex.join(job.command), **{n: shlex.quote(value) for n, value in words.items()})


def check_syntax(name: str, template: str) -> None:
    """Refuse what no shell can read.

    Raises:
        ConfigError: Says what the shell says.
    """
    job = Job(name="n", attempt="a", command=("c",), environment={}, folder=Path("f"), log=Path("l"))
    command = template.format_map({**vars(job), "command": "c", "job": "j"})
    ended = answer(["/bin/sh", "-n", "-c", command])
    if ended.returncode:
        raise ConfigError(f"{name}: {template!r} is no command of a shell ({_said(ended)}); mind its quotes")


def answer(
    command: list[str], environment: Mapping[str, str] | None = None, *, told: str | None = None
) -> subprocess.CompletedProcess[str]:
    """What a short command of a scheduler says.

    Args:
        command: Words.
        environment: None: this process's.
        told: Standard input.

    Raises:
        EngineError: It is not there, or takes too long.
    """
    try:
        return subprocess.run(
            command,
            input="" if told is None else told,
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            env=environment,
            start_new_session=True,  # Ctrl-C is for whoever waits; a job that is being submitted is then known
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]}: {error}") from error


def _said(ended: subprocess.CompletedProcess[str]) -> str:
    return " | ".join(line.strip() for line in f"{ended.stderr}\n{ended.stdout}".splitlines() if line.strip())[-500:]


def _place(note: JobNote) -> tuple[str, int, str]:
    """Host, process, and when that began."""
    host, pid, began = (note.job or "::").rsplit(":", 2)
    return host, int(pid or 0), began


def _began(pid: int) -> str:
    """Tells a process from a later one of the same number; empty: it is over."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]
    except OSError:
        return "?" if not Path("/proc/self/stat").exists() and alive(pid) else ""


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
