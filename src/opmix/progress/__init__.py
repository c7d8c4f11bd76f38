"""Telling somebody how far long work is. The library is silent unless it is handed something that speaks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int, int], None]
"""Called with (done, total); a total of 0 is not known yet."""


class Progress(Protocol):
    """Something that shows tasks."""

    def task(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Show a task until the context is left."""

    def note(self, text: str) -> None:
        """Say a sentence."""


class Silent:
    """Says nothing."""

    def task(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Nothing."""
        return nullcontext(lambda done, total: None)

    def note(self, text: str) -> None:
        """Nothing."""
