"""`opmix doctor`: is this machine fit for opmix, and for one configuration in particular?"""

from __future__ import annotations

from pathlib import Path

from opmix.preflight.checks import Check, Findings
from opmix.preflight.machine import (
    check_devices,
    check_disk,
    check_hub,
    check_memory,
    check_threads,
    free_memory,
)
from opmix.preflight.packages import check_packages, check_python
from opmix.progress import Progress

_TIGHT = 0.8
"""Share of the free memory from which an estimate is too near to be sure of."""


def examine(config: Path | None = None, *, progress: Progress | None = None) -> list[Check]:
    """Look at versions, devices, memory, disk, threads and the hub; with a configuration also at what it needs.

    Args:
        config: A configuration file; its checks are those of `validate`, and memory and disk are held against its estimates.
        progress: Told which domain is looked at.

    Returns:
        One check a line, in the order a reader expects; `failed` tells whether something stands in the way.
    """
    findings = Findings()
    check_python(findings)
    check_packages(findings)
    check_devices(findings)
    check_memory(findings)
    check_threads(findings)
    check_hub(findings)
    runs = Path("runs")
    if config is None:
        check_disk(findings, runs)
        return findings.checks
    from opmix.preflight.validate import validate

    result = validate(config, progress=progress)
    cache = Path(result.config.cache_dir) if result.config is not None and result.config.cache_dir else None
    check_disk(findings, runs, cache)
    findings.checks += result.checks
    if result.cost is not None:
        if result.cost.memory_bytes is not None:
            _check_need(
                result.cost.memory_bytes,
                _device_memory(result.config.model.device if result.config else None),
                findings,
            )
        _check_room(result.cost.cache_bytes, result.cost.adapter_bytes or 0.0, cache, runs, findings)
    return findings.checks


def _device_memory(device: str | None) -> tuple[float | None, str]:
    """Free bytes where the model would be, and what to call that."""
    import torch

    from opmix.models.device import default_device

    chosen = torch.device(device) if device else default_device()
    if chosen.type == "cuda" and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info(chosen)[0]), "GPU memory"
    return free_memory(), "memory"


def _check_need(needed: float, have: tuple[float | None, str], findings: Findings) -> None:
    free, kind = have
    name, remedy = (
        "config: memory",
        "lower trainer.per_device_train_batch_size and proxies.batch_tokens, or shorten sequence_length",
    )
    if free is None:
        findings.warn(name, f"needs about {needed / 1e9:.1f} GB of {kind}; how much is free is not known", remedy)
    elif needed > free:
        findings.fail(name, f"needs about {needed / 1e9:.1f} GB of {kind}, {free / 1e9:.1f} GB are free", remedy)
    elif needed > _TIGHT * free:
        findings.warn(name, f"needs about {needed / 1e9:.1f} GB of {kind}, {free / 1e9:.1f} GB are free: tight", remedy)
    else:
        findings.ok(name, f"needs about {needed / 1e9:.1f} GB of {kind}, {free / 1e9:.1f} GB are free")


def _check_room(tokens: float, adapters: float, cache: Path | None, runs: Path, findings: Findings) -> None:
    import shutil

    from opmix.runs.files import default_cache_dir, existing

    folder = cache or default_cache_dir()
    for name, path, needed in (
        ("config: disk for tokens", folder, tokens),
        ("config: disk for adapters", runs, adapters),
    ):
        free = shutil.disk_usage(existing(path)).free
        told = f"about {needed / 1e9:.2g} GB in {path}, {free / 1e9:.0f} GB are free"
        if needed > free:
            findings.fail(name, told, "free space, or set cache_dir and --out to a larger disk")
        else:
            findings.ok(name, told)
