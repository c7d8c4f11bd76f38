"""Progress that a person sees: bars with time left on a terminal or in a notebook, plain lines in a log file."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segment
from rich.table import Column, Table

from opmix.errors import ConfigError
from opmix.progress import Advance, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal
_WORTH_A_LINE = 1.0  # seconds a task must take to be told of there


_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A text with control characters, which command a terminal, and halves of surrogates, which nothing takes, written out.

    Line ends and tabs are kept.

    Examples:
        >>> print(visible("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode-escape").decode(), text)


class _Terminal(Console):
    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Called by rich with everything that is to be printed; styles become control characters in here."""
        return super()._render_buffer(s if s.control else s._replace(text=visible(s.text)) for s in buffer)


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that shows text as it is: `[en]` in a name is no style, `:x:` no picture, numbers are not coloured.

    Control characters in it are written out (`visible`).
    """
    return _Terminal(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def table(*columns: Column | str, title: str | None = None) -> Table:
    """The one style of tables in a terminal: no frame, a line below the heads, nothing wider than it must be."""
    made = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    made.title_style = "bold"
    return made


def tell(console: Console, sentence: str, style: str | None = None) -> None:
    """A sentence: broken between words where somebody looks, whole in a file or pipe."""
    console.print(sentence, style=style, soft_wrap=not console.is_terminal)


class Display:
    """Progress bars on a terminal or in a notebook, plain lines in a log file; on standard error."""

    def __init__(self, *, silent: bool = False) -> None:
        self._console = terminal(stderr=True, quiet=silent)
        # rich draws bars in a notebook with ipywidgets only; without it, lines.
        widgets = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        live = (self._console.is_terminal or widgets) and not silent
        self._bars = _bars(self._console) if live else None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def note(self, text: str) -> None:
        """A sentence of its own."""
        self._console.print(text, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A bar, or a line every ten seconds and one at the end."""
        started = last = time.monotonic()
        bars = self._bars
        bar = None if bars is None else bars.add_task(name, total=total or None)

        def advance(done: int, of: int) -> None:
            nonlocal last
            if bars is not None and bar is not None:
                bars.update(bar, completed=done, total=of or None)
                return
            now = time.monotonic()
            if now - last >= _PLAIN_EVERY and (done < of or not of):
                last = now
                left = (now - started) / max(done, 1) * (of - done)
                self.note(f"{name}: {done}/{of}, about {left:.0f} s left" if of else f"{name}: {done:,} documents")

        try:
            yield advance
        finally:
            if bars is not None and bar is not None:
                bars.remove_task(bar)  # its line below stays; bars of finished tasks would fill the screen
        if time.monotonic() - started >= _WORTH_A_LINE:
            self.note(f"{name}: done in {time.monotonic() - started:.1f} s")


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def shown(progress: Progress | Literal["auto"] | None) -> Iterator[Progress | None]:
    """What `progress="auto"` stands for: a `Display` where somebody looks (terminal, notebook), else silence.

    Raises:
        ConfigError: Another text, or no object that shows anything.
    """
    shows = progress is None or (hasattr(progress, "task") and hasattr(progress, "note"))
    if not shows and progress != "auto":
        raise ConfigError(f"progress: {progress!r}; expected 'auto', None or an object with task() and note()")
    if not isinstance(progress, str):
        yield progress
        return
    console = terminal(stderr=True)
    with Display(silent=not (console.is_terminal or console.is_jupyter)) as display:
        yield display


__all__ = ["Display", "shown", "terminal"]
