"""A run folder in which every expensive step is a record keyed by a fingerprint of its inputs.

Running again is resuming: a step whose record has the same fingerprint is not done again; one whose inputs changed is stale and is.

    steps/<name>.json    {"name", "fingerprint", "inputs", "result", "seconds", "finished"}
    lock                 who holds the folder (`runs.lock`)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opmix.errors import OpMixError, StoreError
from opmix.runs.files import (
    append_line,
    full_disk,
    json_of,
    plain,
    remove_leftovers,
    sync_new,
    without_secrets,
    write_json,
)
from opmix.runs.lock import FolderLock
from opmix.runs.ranks import Ranks, ranks_here
from opmix.runs.run_folder import keep
from opmix.runs.trace import span, traced

_RECORD = {"fingerprint": str, "inputs": dict, "result": dict}


def fingerprint(value: Any) -> str:
    """Stable hash of a JSON-like value; secrets are no part of it."""
    text = json.dumps(plain(without_secrets(value)), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass
class Record:
    """Of a step in progress (`RunStore.recording`)."""

    result: Any = None
    """JSON-like; what was found, or what the body gives."""
    found: bool = False

    @property
    def missing(self) -> bool:
        """Whether the body has to do the step."""
        return not self.found


class RunStore:
    """A run folder held by one process at a time, or by the ranks of one run; use as a context manager.

    Args:
        folder: Made where it does not exist.
        command: What the folder is for; None: whatever it holds.
        ranks: Who runs this program; the first writes. None: those that there are.

    Raises:
        StoreError: Another live process holds the folder, it holds a run of another command, or it cannot be written.
    """

    def __init__(self, folder: Path, command: str | None = None, ranks: Ranks | None = None) -> None:
        self.folder, self.ranks = folder, ranks or ranks_here()
        self._command = command
        self._lock = FolderLock(folder)
        self._ends = ExitStack()
        self._trace = ExitStack()

    def __enter__(self) -> Self:
        with self.ranks.agreed():
            if self.ranks.first:
                self._enter()
        return self

    def _enter(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot be created ({error.strerror or error}); choose another --out"
            ) from error
        self.check_command()
        self._lock.take()
        try:
            remove_leftovers(self.folder, "**/.writing-*")
            self._trace.enter_context(traced(self.folder))
        except BaseException:  # nobody will leave what was not entered
            self._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()
        self._trace.close()
        self._lock.release()
        unforeseen = isinstance(error, Exception) and not isinstance(error, OpMixError)
        if error is not None and unforeseen and (full := full_disk(error, self.folder)) is not None:
            raise full from error

    @property
    def held(self) -> bool:
        """Whether this process holds the folder: processes that do its tasks do not."""
        return self._lock.held

    def before_release(self, end: Callable[[], None]) -> None:
        """Have something called before the lock is released, such as the end of processes that write here."""
        self._ends.callback(end)

    def check_command(self) -> None:
        """Refuse a folder that holds a run of another command.

        Raises:
            StoreError: It does.
        """
        try:
            content = json_of(self.folder / "manifest.json")
            other = content["command"]
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
        ):  # nothing there, or damaged: nothing to protect
            return
        if self._command is not None and other != self._command:
            raise StoreError(
                f"{self.folder}: holds a run of `opmix {other}`, which `opmix {self._command}` would overwrite; "
                "choose another --out, or delete the folder"
            )

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished step, or None; a damaged record counts as none."""
        try:
            content = json_of(self.folder / "steps" / f"{name}.json")
            whole = all(isinstance(content[key], kind) for key, kind in _RECORD.items())
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return dict(content) if whole else None

    def found(self, name: str, key: str) -> dict[str, Any] | None:
        """The result of a finished step with just these inputs (`key` is their fingerprint), or None."""
        record = self.record(name)
        return dict(record["result"]) if record is not None and record["fingerprint"] == key else None

    def forget(self, name: str) -> None:
        """Remove a step's record, where there is one."""
        if self.ranks.first:
            (self.folder / "steps" / f"{name}.json").unlink(missing_ok=True)

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to `events.jsonl`: what happened when, for people and programs that follow a run.

        Raises:
            StoreError: It cannot be written.
        """
        if not self.ranks.first:
            return
        line = json.dumps(plain({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": kind, **facts}))
        try:
            append_line(self.folder / "events.jsonl", line)
        except OSError as error:
            raise StoreError(
                f"{self.folder}/events.jsonl: cannot be written ({error.strerror or error}); free space"
            ) from error

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        *,
        intact: Callable[[], bool] = lambda: True,
        together: bool = False,
    ) -> tuple[dict[str, Any], bool]:
        """Do a step, or find it done. All ranks go on with the same result.

        Args:
            name: File name of the record.
            inputs: Everything the result depends on.
            work: Does it and returns a JSON-like result; files it leaves must be complete when it returns.
            intact: Whether the files of a recorded step are still there; the first rank looks.
            together: All ranks work, and nothing that ranks wait for each other in may fail on one only; else the first works alone, and
                what goes wrong there is raised on all.

        Returns:
            The result, and whether it was found rather than done.
        """
        if together:
            with self.recording(name, inputs, intact=intact) as record:
                if record.missing:
                    record.result = work()
            return record.result, record.found
        key, result = fingerprint(inputs), None
        if (found := self._intact(name, key, intact)) is not None:
            return found, True
        with self._doing(name), self.ranks.agreed():
            if self.ranks.first:
                started, result = time.perf_counter(), plain(work())
                self._write(name, key, inputs, result, time.perf_counter() - started)
        return dict(self.ranks.shared(result or {})), False

    @contextmanager
    def recording(
        self, name: str, inputs: Mapping[str, Any], *, intact: Callable[[], bool] = lambda: True
    ) -> Iterator[Record]:
        """A step that all ranks do in the body where its record is missing; the result given there is kept at the end. See `step`."""
        key = fingerprint(inputs)
        if (found := self._intact(name, key, intact)) is not None:
            yield Record(result=found, found=True)
            return
        with self._doing(name):
            started, record = time.perf_counter(), Record()
            yield record
            record.result = plain(record.result)
            with self.ranks.agreed():
                if self.ranks.first:
                    self._write(name, key, inputs, record.result, time.perf_counter() - started)
            record.result = dict(self.ranks.shared(record.result))

    def _intact(self, name: str, key: str, intact: Callable[[], bool]) -> dict[str, Any] | None:
        """What the first rank finds of a step, on all ranks."""
        found = self.found(name, key) if self.ranks.first else None
        return self.ranks.shared(found if found is not None and intact() else None)

    @contextmanager
    def _doing(self, name: str) -> Iterator[None]:
        self._lock.check()
        with span(name, "step"):
            yield

    def _write(self, name: str, key: str, inputs: Mapping[str, Any], result: Any, seconds: float) -> None:
        with span("record", "saving"):
            sync_new(self.folder, time.time() - seconds - 1)
            write_json(
                self.folder / "steps" / f"{name}.json",
                {
                    "name": name,
                    "fingerprint": key,
                    "inputs": without_secrets(inputs),
                    "result": result,
                    "seconds": seconds,
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            )
        keep(self.folder)
