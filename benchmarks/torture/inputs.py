"""Wrong values and damaged files for every verb (benchmarks/hostile.py): no traceback, no hang."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

CALLS = 1009
"""Of `hostile.walk` at a scale of 1, without those that run what is ready."""
RUN = 0.02
"""Share of the calls that run what `validate` called ready."""


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """About `most` calls over all processes. What is called ready and then fails is counted: rates that diverge are known afterwards."""
    import hostile

    from opmix.cli.app import app

    for number in (signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, hostile.hangs)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.chdir(folder)
    hostile.prepared(folder)
    at, share = hostile.Walk(app, show=False, until=time.monotonic() + seconds), most / part[1] / CALLS
    with contextlib.suppress(hostile.TimeIsUpError):
        hostile.walk(at, share, round(RUN * share * CALLS), 1000 * seed + part[0])
    kinds: Counter[str] = Counter()
    for (_, kind), count in at.ends.items():
        kinds[kind] += count
    done = {
        "calls": sum(kinds.values()),
        **{kind: kinds[kind] for kind in ("clear error", "accepted", "ready, but failed")},
    }
    return {"done": done, "wrong": [text for text in at.bad if not text.startswith("ready")], "told": at.bad}
