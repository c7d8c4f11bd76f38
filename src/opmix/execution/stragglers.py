"""Tasks that take much longer than their siblings: named, not started twice (a second GPU costs as much as the first)."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterator

_TIMES = 3.0
_SIBLINGS = 3  # that must have ended before anything is usual
_LEAST = 30.0  # seconds below which nobody is slow


class Stragglers:
    """Watches the tasks of one fan-out, which are of one kind and size.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._took: list[float] = []
        self._named: set[str] = set()

    def seen(self, name: str) -> None:
        """A task is being done."""
        self._since.setdefault(name, self._clock())

    def ended(self, name: str, *, well: bool) -> None:
        """A task is not being done any more."""
        since = self._since.pop(name, None)
        if since is not None and well:
            insort(self._took, self._clock() - since)

    def slow(self) -> Iterator[tuple[str, float, float]]:
        """Name, seconds so far, and the median of those that ended: tasks that take three times as long. Each is told once."""
        if len(self._took) < _SIBLINGS:
            return
        usual, now = self._took[len(self._took) // 2], self._clock()
        for name, since in self._since.items():
            if name not in self._named and now - since > max(_TIMES * usual, _LEAST):
                self._named.add(name)
                yield name, now - since, usual
