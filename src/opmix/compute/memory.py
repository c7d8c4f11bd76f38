"""Peak memory of a stretch of work (standard library, and torch where it is loaded already)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def watch_memory() -> Callable[[], int]:
    """Start watching; the result, called, gives the peak since then in bytes.

    On a GPU the peak of allocated device memory. Else the process's resident set: since the start of watching where Linux can reset its
    high-water mark, since the start of the process elsewhere.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return lambda: int(torch.cuda.max_memory_allocated())
    try:
        _RESET.write_text("5")
    except OSError:
        return _since_start
    return _high_water


def _high_water() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _since_start()


def _since_start() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
