"""What a run spends its time on: `trace.jsonl` in the run folder, a line for every span of work when it ends.

    {"session": "4711-1764144000", "name": "train", "kind": "training", "start": seconds since 1970, "seconds": 1.5}

Spans of a session (one process) nest. A process that is killed loses those that were open. Nothing that resumes or is compared reads them.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from opmix.runs.files import append_line, parsed_json, regular, write_json

FILE = "trace.jsonl"
Kind = Literal[
    "training",
    "evaluating",
    "deciding",
    "loading",
    "saving",
    "tokenising",
    "fingerprints",
    "reports",
    "step",
    "run",
]
"""Of the time in a span that none of the spans inside it has: `step` and `run` are what is left over."""
WORK: frozenset[Kind] = frozenset({"training", "evaluating"})
"""What the hardware is there for; the rest is waiting."""

WAITING: Mapping[str, str] = {"step": "other parts of steps", "run": "between steps"}
"""What the kinds that are left over are called."""


@dataclass(frozen=True)
class Span:
    """A stretch of one process's time."""

    session: str
    name: str
    kind: Kind
    start: float
    """Seconds since 1970."""
    seconds: float


@dataclass
class _Tracing:
    """Where this process writes; one run at a time, the outermost."""

    file: Path | None = None
    session: str = ""
    began: float | None = None
    """When the command began, until a run has taken it over."""


_tracing = _Tracing()


def command_began() -> None:
    """Remember the time: what a command does before it opens a run folder, such as importing torch, is the run's too."""
    _tracing.began = time.time()


@contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Write the spans of this process into a run folder; inside another such context, the outer one's goes on."""
    if _tracing.file is not None:
        yield
        return
    now = time.time()
    start = now if _tracing.began is None else _tracing.began
    _tracing.file, _tracing.session, _tracing.began = folder / FILE, f"{os.getpid()}-{start:.0f}", None
    if start < now:
        _write(Span(_tracing.session, "start", "loading", start, now - start))
    try:
        yield
    finally:
        _write(Span(_tracing.session, "run", "run", start, time.time() - start))
        _tracing.file = None


@contextmanager
def span(name: str, kind: Kind) -> Iterator[None]:
    """Trace what is done inside, where a run is traced; also work that fails."""
    start = time.time()
    try:
        yield
    finally:
        add_span(name, kind, start)


def add_span(name: str, kind: Kind, start: float) -> None:
    """Trace what has been going on since `start`, seconds since 1970."""
    if _tracing.file is not None:
        _write(Span(_tracing.session, name, kind, start, time.time() - start))


def _write(done: Span) -> None:
    """No run fails for its trace."""
    line = json.dumps({**vars(done), "start": round(done.start, 6), "seconds": round(done.seconds, 6)})
    if _tracing.file is not None:
        with suppress(OSError):
            append_line(_tracing.file, line)


def read_spans(folder: Path) -> list[Span]:
    """All spans of a run folder in the order in which they ended; damaged lines are left out, no file is no spans."""
    try:
        lines = regular(folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            said = parsed_json(line)
            one = Span(**{**said, "start": float(said["start"]), "seconds": float(said["seconds"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # cut off: the process died, or is still writing it
        if one.kind in get_args(Kind) and one.seconds >= 0:
            found.append(one)
    return found


@dataclass(frozen=True)
class Spent:
    """Where the time of a run went."""

    seconds: Mapping[str, float]
    """By kind, the time inside other spans counted once, at the innermost."""

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Spent:
        """Return the sums over all sessions; a killed one counts as far as its spans tell."""
        by: dict[str, float] = defaultdict(float)
        for session in dict.fromkeys(s.session for s in spans):
            mine = sorted((s for s in spans if s.session == session), key=lambda s: (s.start, -s.seconds))
            begin, end = mine[0].start, max(s.start + s.seconds for s in mine)
            whole = Span(session, "run", "run", begin, end - begin)
            for kind, seconds in _own_seconds([whole, *(s for s in mine if s.kind != "run")]):
                by[kind] += seconds
        return cls({kind: seconds for kind, seconds in sorted(by.items(), key=lambda item: -item[1]) if seconds})

    @property
    def total(self) -> float:
        """Seconds of all processes."""
        return sum(self.seconds.values())

    @property
    def waiting(self) -> float:
        """Share of the time, 0 to 1, in which nothing was trained or evaluated; 0 where no time is known."""
        work = sum(self.seconds.get(kind, 0.0) for kind in WORK)
        return 1 - work / self.total if self.total else 0.0


def _own_seconds(spans: Sequence[Span]) -> list[tuple[Kind, float]]:
    """Kind and own time of spans ordered by their start, the outer before the inner."""
    open_spans: list[Span] = []
    own = [s.seconds for s in spans]
    number = {id(s): i for i, s in enumerate(spans)}
    for s in spans:
        middle = s.start + s.seconds / 2
        while open_spans and open_spans[-1].start + open_spans[-1].seconds < middle:
            open_spans.pop()
        if open_spans:
            own[number[id(open_spans[-1])]] -= s.seconds
        open_spans.append(s)
    return [(s.kind, max(seconds, 0.0)) for s, seconds in zip(spans, own, strict=True)]


def write_chrome(spans: Sequence[Span], file: Path) -> Path:
    """Write spans as Chrome's trace events, which Perfetto and `chrome://tracing` open.

    Raises:
        StoreError: The file cannot be written.
    """
    first = min((s.start for s in spans), default=0.0)
    rows = {session: row for row, session in enumerate(dict.fromkeys(s.session for s in spans), 1)}
    named: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": row, "tid": row, "args": {"name": f"opmix {session}"}}
        for session, row in rows.items()
    ]
    done = [
        {
            "name": s.name,
            "cat": s.kind,
            "ph": "X",
            "ts": round((s.start - first) * 1e6),
            "dur": round(s.seconds * 1e6),
            "pid": rows[s.session],
            "tid": rows[s.session],
        }
        for s in spans
    ]
    return write_json(file, {"traceEvents": [*named, *done], "displayTimeUnit": "ms"})
