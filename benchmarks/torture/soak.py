"""Searches one after the other in one process: memory, open files, threads, disk and times stay flat.

A quantity is flat where the line through its second half (the first is warming up) does not rise by more than twice its standard error
and by more than a part of its level over that half: what keeps something of every search shows as a slope.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from world import World, settings_of_life

ALLOWED = {"resident MB": 0.05, "open files": 0.0, "threads": 0.0, "disk files": 0.0, "seconds": 0.5}
"""Rise over the second half, as a part of the level, that counts as flat: allocators and a machine's load move these of themselves."""
ROUNDING = 1e-9
"""Of the line through numbers that are all alike."""


def now(folder: Path) -> dict[str, float]:
    """What there is of everything that could grow."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - no path is wanted
        "threads": threading.active_count(),
        "disk files": sum(1 for _ in folder.rglob("*")),
    }


def rise(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Of the line through the second half, over that half: by least squares, with its standard error."""
    half = values[len(values) // 2 :]
    x = np.linspace(0, 1, len(half))
    (slope, _), covariance = np.polyfit(x, half, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def one_search(world: World) -> None:
    """A search without a life around it."""
    import opmix
    from opmix.testing import tiny_model, tiny_tokenizer

    life = settings_of_life()
    tokenizer = tiny_tokenizer()
    opmix.search(
        tiny_model("llama", vocab_size=len(tokenizer)),
        tokenizer,
        {name: life["domains"][name] for name in ("alpha", "beta")},
        budget=2000,
        sequence_length=32,
        trainer=life["trainer"],
        probes=life["probes"],
        proxies=life["proxies"],
        decision=life["decision"],
        cache_dir=str(world.root / "data" / "cache"),
        out=world.run,
        progress=None,
    )


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """As many searches as there is time for, in the first process alone; two lines of the time of each, measured by its CPU."""
    deadline, world = time.monotonic() + seconds, World(folder / "world")
    if part[0]:
        return {"done": {}, "wrong": []}
    world.create()
    os.chdir(world.root)
    seen: dict[str, list[float]] = {name: [] for name in ALLOWED}
    while len(seen["seconds"]) < max(most, 8) and (len(seen["seconds"]) < 8 or time.monotonic() < deadline):
        started = time.process_time()
        one_search(world)
        found = {**now(world.root), "seconds": time.process_time() - started}
        for name, value in found.items():
            seen[name].append(value)
        shutil.rmtree(world.run)
    wrong, told = [], {}
    for name, values in seen.items():
        slope, error = rise(np.array(values))
        level = float(np.mean(values[len(values) // 2 :]))
        told[name] = {"level": level, "rise": slope, "error": error}
        if slope > 2 * error and slope > max(ALLOWED[name], ROUNDING) * level:
            wrong.append(
                f"{name} rise by {slope:.3g} +- {error:.2g} over {len(values) // 2} searches (level {level:.4g})"
            )
    return {"done": {"searches": len(seen["seconds"])}, "wrong": wrong, "told": told}
