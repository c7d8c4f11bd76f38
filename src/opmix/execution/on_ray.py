"""Tasks of a cluster of Ray: each is a remote function that runs the task's command on a node and tells its exit code.

Nothing else goes through Ray: no object store, no retries of its own. Its tasks end with the process that started them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.errors import ConfigError
from opmix.execution.attempts import JobNote
from opmix.execution.jobs import Job, Over
from opmix.execution.settings import RaySettings, Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIGA = 10**9


class OnRay:
    """See `Engine`.

    Args:
        wanted: Which cluster.
        resources: Of a task.
        gpus: Of a task.
    """

    kind = "ray"
    outlives = False
    poll_seconds = 0.2

    def __init__(self, wanted: RaySettings, resources: Resources, gpus: int) -> None:
        self._wanted, self._resources, self._gpus = wanted, resources, gpus
        self._refs: dict[str, Any] = {}
        self._ours = False

    def check(self) -> str:
        """See `Engine`."""
        if find_spec("ray") is None:
            raise ConfigError(
                "executor.kind: ray; the package is not installed; install 'opmix[ray]' here and on all nodes"
            )
        ray = self._connected()
        needs = {"CPU": self._resources.cpus, "GPU": self._gpus, "memory": (self._resources.memory_gb or 0) * _GIGA}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes):
            told = ", ".join(f"{amount:g} {kind}" for kind, amount in needs.items() if amount)
            have = "; ".join(", ".join(f"{node.get(kind, 0):g} {kind}" for kind in needs) for node in nodes)
            raise ConfigError(f"executor.resources: {told} for a task; no node of the cluster has as much ({have})")
        each = f"{self._resources.cpus} CPU and {self._gpus} GPU each"
        return f"tasks of a Ray cluster of {len(nodes)} node{'s' * (len(nodes) > 1)}, {each}"

    def _connected(self) -> Any:
        import ray

        if ray.is_initialized():
            return ray
        try:
            with _own_handlers():
                ray.init(address=self._wanted.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"executor.ray.address: {self._wanted.address!r}; no cluster of Ray answers there ({said}); start one "
                "(`ray start --head`), or name its address"
            ) from error
        self._ours = True
        return ray

    def submit(self, job: Job) -> str:
        """See `Engine`."""
        ray = self._connected()
        remote = ray.remote(_started).options(
            name=f"opmix {job.name}",
            num_cpus=self._resources.cpus,
            num_gpus=self._gpus,
            memory=None if self._resources.memory_gb is None else int(self._resources.memory_gb * _GIGA),
            max_retries=0,
        )
        self._refs[job.attempt] = remote.remote(job.command, dict(job.environment), str(job.log))
        return str(self._refs[job.attempt].hex())

    def over(self, jobs: Mapping[str, JobNote]) -> dict[str, Over]:
        """See `Engine`."""
        ray = self._connected()
        own = {name: self._refs[note.attempt] for name, note in jobs.items()}
        found = {}
        ready = set(ray.wait(list(own.values()), num_returns=len(own), timeout=0)[0]) if own else set()
        for name, ref in own.items():
            if ref not in ready:
                continue
            try:
                code, node = ray.get(ref)
            except ray.exceptions.RayError as error:
                said = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                found[name] = Over(error=said, place="a node of Ray")
                continue
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            found[name] = Over(error=f"its process {how}" if code else None, place=f"node {node}")
        return found

    def cancel(self, jobs: Mapping[str, JobNote]) -> None:
        """See `Engine`."""
        if self._refs:
            with suppress(Exception):
                import ray

                for note in jobs.values():
                    if note.attempt in self._refs:
                        ray.cancel(self._refs[note.attempt], force=True)

    def close(self) -> None:
        """See `Engine`."""
        if self._ours:
            import ray

            with _own_handlers():
                ray.shutdown()
            self._ours = False


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep what this process does on Ctrl-C and SIGTERM: Ray puts handlers of its own in their place."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(ValueError):  # not the main thread, which alone has handlers
                signal.signal(number, handler)


def _started(command: Sequence[str], environment: Mapping[str, str], log: str) -> tuple[int, str]:
    """On a node: run a command to its end; exit code and the node's name."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as stream:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **environment},
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
            check=False,
        )
    return ended.returncode, socket.gethostname()


def die_with_parent() -> None:
    """In a child: be killed when the process that started it ends (Linux). Ray kills its worker, not what that started."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
