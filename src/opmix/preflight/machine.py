"""The machine: devices, memory, disk, threads, and where models would come from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from opmix.preflight.checks import Findings
from opmix.runs.files import default_cache_dir, existing

LITTLE_DISK = 5e9
NO_DISK = 0.3e9
LITTLE_MEMORY = 4e9
_BUSY = 1.5
"""Threads that want to run, over cores, from which the machine counts as busy."""


def check_devices(findings: Findings) -> None:
    """Which accelerator there is, and whether it computes in bfloat16."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways: missing libraries, wrong architecture
        findings.fail(
            "device",
            f"torch cannot be imported ({type(error).__name__}: {error})",
            "reinstall torch for this machine: https://pytorch.org",
        )
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            half = torch.cuda.is_bf16_supported(including_emulation=False)
            findings.ok(
                "device",
                f"cuda:{index} {properties.name}, {properties.total_memory / 1e9:.0f} GB, "
                f"{'bfloat16' if half else 'float32'}",
            )
    elif torch.backends.mps.is_available():
        findings.ok("device", "Apple MPS; models are loaded in float32")
    elif torch.version.cuda is not None and shutil.which("nvidia-smi"):
        findings.warn(
            "device",
            "CPU only, though there is an NVIDIA driver: torch does not reach the GPU",
            "match torch's CUDA version to the driver's (nvidia-smi)",
        )
    else:
        findings.ok("device", "CPU, float32; fine for small models, slow from some hundred million parameters")


def free_memory() -> float | None:
    """Bytes that could be used now, the container's limit considered; None where the system does not tell."""
    amounts = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        amounts.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    except (OSError, ValueError, StopIteration):
        try:
            amounts.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
        except (OSError, ValueError, AttributeError):
            return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            folder = Path("/sys/fs/cgroup")
            amounts.append(float((folder / limit).read_text()) - float((folder / used).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(min(amounts), 0.0)


def check_memory(findings: Findings) -> None:
    """Memory that is free."""
    free = free_memory()
    if free is None:
        findings.warn("memory", "this system does not tell how much is free", "see that a few GB are")
    elif free < LITTLE_MEMORY:
        findings.warn(
            "memory",
            f"{free / 1e9:.1f} GB free; torch and a small model want {LITTLE_MEMORY / 1e9:.0f}",
            "close other programs",
        )
    else:
        findings.ok("memory", f"{free / 1e9:.1f} GB free")


def check_disk(findings: Findings, runs: Path, cache: Path | None = None) -> None:
    """Room and permission where tokens and runs are written."""
    for name, folder, option in (("cache", cache or default_cache_dir(), "cache_dir"), ("run folder", runs, "--out")):
        there = existing(folder)
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            findings.fail(f"disk ({name})", f"{folder}: cannot be written", f"choose another folder with {option}")
        elif free < NO_DISK:
            findings.fail(
                f"disk ({name})",
                f"{folder}: {free / 1e9:.1f} GB free",
                f"free space, or choose another folder with {option}",
            )
        elif free < LITTLE_DISK:
            findings.warn(
                f"disk ({name})",
                f"{folder}: {free / 1e9:.1f} GB free",
                f"free space, or choose another folder with {option}",
            )
        else:
            findings.ok(f"disk ({name})", f"{folder}: {free / 1e9:.0f} GB free")


def cores() -> int:
    """Cores this process may use: its affinity and the container's quota considered."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota, or "max"
        pass
    return count


def check_threads(findings: Findings) -> None:
    """Threads that numerical code would start, against cores and what runs already."""
    have, setting = cores(), os.environ.get("OMP_NUM_THREADS", "")
    if setting and not setting.isdigit():
        findings.warn(
            "threads", f"OMP_NUM_THREADS={setting}; expected a whole number", f"export OMP_NUM_THREADS={have}"
        )
        return
    threads = int(setting) if setting else have
    told = f"OMP_NUM_THREADS={setting}" if setting else "OMP_NUM_THREADS is not set, all cores are used"
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):
        load = 0.0
    if threads > have:
        findings.warn(
            "threads", f"{told}, but {have} core(s): threads will wait for each other", f"export OMP_NUM_THREADS={have}"
        )
    elif threads > 1 and load >= 1 and load + threads > _BUSY * have:
        spare = max(1, round(have - load))
        findings.warn(
            "threads",
            f"{told}, {have} core(s), and other work keeps {load:.1f} of them busy: too many threads are several times "
            "slower",
            f"wait, or export OMP_NUM_THREADS={spare}",
        )
    else:
        findings.ok("threads", f"{told}, {have} core(s)")


def check_hub(findings: Findings) -> None:
    """Whether models and data may come from the Hugging Face hub, and what is here already."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    try:
        stored = sum(1 for entry in hub.iterdir() if entry.name.startswith(("models--", "datasets--")))
    except OSError:
        stored = 0
    have = f"{stored} repositories in {hub}"
    names = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE") if _set(name)]
    if names and not stored:
        findings.warn(
            "hub",
            f"offline ({', '.join(names)}) and nothing cached: hub names cannot be used",
            "give models and data as local paths",
        )
    elif names:
        findings.ok("hub", f"offline ({', '.join(names)}); {have}")
    else:
        findings.ok("hub", f"online use is allowed; {have}")


def _set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
