"""One part of the torture in several processes."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from world import import_big

ROOM = 2 << 30


def work(task: tuple[str, Path, dict[str, Any]]) -> dict[str, Any]:
    """One slice of a part."""
    name, folder, settings = task
    folder.mkdir(parents=True)
    found: dict[str, Any] = importlib.import_module(name).torture(folder, **settings)
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    return found


def spread(
    name: str, seed: int, most: int, seconds: float, processes: int
) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Do a part in so many processes, forked with the big imports behind them.

    Returns:
        What was done, summed over the processes; what went wrong; what else they told.
    """
    import_big()
    base = Path(tempfile.mkdtemp(prefix="torture-", dir=quick_disk()))
    settings = {"seed": seed, "most": most, "seconds": seconds}
    tasks = [(name, base / f"{name}-{k}", {**settings, "part": (k, processes)}) for k in range(processes)]
    try:
        with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
            found = pool.map(work, tasks, chunksize=1)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    done: dict[str, Any] = {}
    for kind, count in (item for part in found for item in part["done"].items()):
        done[kind] = done.get(kind, 0) + count
    return done, [text for part in found for text in part["wrong"]], [part["told"] for part in found if "told" in part]


def quick_disk() -> str | None:
    """A disk in memory, where there is one with room: what is waited for is then the package and not the disk."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else None
