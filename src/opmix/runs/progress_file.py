"""How far a run is, in a file that other processes read: `opmix status --watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opmix.progress import Advance, Progress
from opmix.runs.files import write_json

_EVERY = 1.0  # seconds between two writes


class ProgressFile:
    """Passes everything on to another display and keeps the latest state in a file.

    Args:
        path: The file.
        shown: The other display.
        every: Seconds between two writes at least.
    """

    def __init__(self, path: Path, shown: Progress, *, every: float = _EVERY) -> None:
        self._path, self._shown, self._every, self._last = path, shown, every, 0.0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Show a task until the context is left."""
        started = time.time()
        with self._shown.task(name, total) as advance:

            def both(done: int, of: int) -> None:
                advance(done, of)
                if time.time() - self._last >= self._every:
                    self._last = time.time()
                    said = {"task": name, "done": done, "total": of, "started": started, "time": self._last}
                    write_json(self._path, said, lasting=False)

            yield both

    def note(self, text: str) -> None:
        """Say a sentence."""
        self._shown.note(text)
