"""Real schedulers on this machine, for tests and measurements: a Slurm of two nodes and a Ray cluster of two.

apt-get install slurmctld slurmd slurm-client munge        # as root; no systemd, no accounting
pip install ray
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opmix.execution.on_ray import die_with_parent

_SLURM = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
_CONF = """\
ClusterName=opmix
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/d-%n.pid
SlurmctldLogFile={folder}/ctl.log
SlurmdLogFile={folder}/d-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SlurmdTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs=1 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs=1 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str:
    """Empty: two nodes can be started here."""
    missing = [name for name in _SLURM if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.getuid() == 0 else "slurmctld and slurmd are started as root here"


def why_no_ray() -> str:
    """Empty: a cluster can be started here."""
    return "" if find_spec("ray") is not None else "ray is not installed: pip install 'opmix[ray]'"


@contextmanager
def two_slurm_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes of one core; yields what its commands must find in their environment."""
    host, ports = socket.gethostname().partition(".")[0], _free_ports(3)
    for part in ("state", "spool/n1", "spool/n2", "munge"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    conf, munge = folder / "slurm.conf", folder / "munge"
    conf.write_text(_CONF.format(host=host, folder=folder, port=ports[0], one=ports[1], two=ports[2]))
    key = munge / "key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    environment = {"SLURM_CONF": str(conf)}
    authority = ["munged", "--force", "--foreground", f"--socket={munge}/socket", f"--key-file={key}"]
    authority += [f"--{name}-file={munge}/{name}" for name in ("log", "seed", "pid")]
    commands = [authority, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in ("n1", "n2"))]
    started = []
    try:
        for command in commands:
            with (folder / f"{len(started)}-{command[0]}.txt").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        env={**os.environ, **environment},
                        start_new_session=True,
                        preexec_fn=die_with_parent,  # a test that is killed leaves no Slurm behind
                    )
                )
            if command is authority:
                _until((munge / "socket").exists, "munged")
        _until(lambda: _idle(environment) == 2, f"two nodes of Slurm (logs in {folder})")
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env={**os.environ, **environment}, capture_output=True, check=False)
        _until(lambda: _idle(environment) == 2 or started[-1].poll() is not None, "the end of all jobs", on_time=False)
        for process in reversed(started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if process.poll() is None else signal.SIGKILL)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _idle(environment: dict[str, str]) -> int:
    said = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return len(said.stdout.split())


@contextmanager
def two_ray_nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of two nodes of one CPU; its address is `.address`."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _until(true: Any, what: str, seconds: float = 40.0, *, on_time: bool = True) -> None:
    before = time.monotonic()
    while not true():
        if time.monotonic() - before > seconds:
            if not on_time:
                return
            raise RuntimeError(f"{what}: not there after {seconds:.0f} s")
        time.sleep(0.1)
