"""A run folder in which every expensive step is a record keyed by a fingerprint of its inputs.

Running again is resuming: a step whose record has the same fingerprint is not done again; one whose inputs changed is stale and is.

    steps/<name>.json    {"name", "fingerprint", "inputs", "result", "seconds", "finished"}
    lock                 pid and host of the process that holds the folder; touched every half minute
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opmix.errors import OpMixError, StoreError
from opmix.runs.files import (
    alive,
    full_disk,
    plain,
    remove_leftovers,
    sync_new,
    without_secrets,
    write_json,
    writing_prefix,
)
from opmix.runs.ranks import Ranks, ranks_here
from opmix.runs.trace import span, traced

LEASE = 600.0
"""Seconds after which the lock of another machine that nobody has touched is broken."""
_RECORD = {"fingerprint": str, "inputs": dict, "result": dict}


def fingerprint(value: Any) -> str:
    """Stable hash of a JSON-like value; secrets are no part of it."""
    text = json.dumps(plain(without_secrets(value)), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


UNWRITTEN = 5.0
"""Seconds after which a lock without a holder is damaged, and not one that is just being written."""


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
        self._holder: tuple[int, str] | None = None
        self._released = threading.Event()
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
        self._acquire()
        remove_leftovers(self.folder, "**/.writing-*")
        self._trace.enter_context(traced(self.folder))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()
        self._trace.close()
        self._released.set()
        if self._holder is not None and lock_holder(self.folder) == self._holder:
            self._lock.unlink(missing_ok=True)
        self._holder = None
        unforeseen = isinstance(error, Exception) and not isinstance(error, OpMixError)
        if error is not None and unforeseen and (full := full_disk(error, self.folder)) is not None:
            raise full from error

    @property
    def held(self) -> bool:
        """Whether this process holds the folder: processes that do its tasks do not."""
        return self._holder is not None

    def before_release(self, end: Callable[[], None]) -> None:
        """Have something called before the lock is released, such as the end of processes that write here."""
        self._ends.callback(end)

    def check_command(self) -> None:
        """Refuse a folder that holds a run of another command.

        Raises:
            StoreError: It does.
        """
        try:
            content = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
            other = content["command"]
        except (OSError, ValueError, TypeError, KeyError):  # nothing there, or damaged: nothing to protect
            return
        if self._command is not None and other != self._command:
            raise StoreError(
                f"{self.folder}: holds a run of `opmix {other}`, which `opmix {self._command}` would overwrite; "
                "choose another --out, or delete the folder"
            )

    @property
    def _lock(self) -> Path:
        return self.folder / "lock"

    def _acquire(self) -> None:
        for _ in range(2):
            try:
                self._claim()
            except FileExistsError:
                self._break_stale_lock()
                continue
            except OSError as error:
                raise StoreError(
                    f"{self.folder}: cannot be written ({error.strerror or error}); free space or choose another --out"
                ) from error
            self._holder = (os.getpid(), socket.gethostname())
            threading.Thread(target=self._keep_lease, daemon=True).start()
            return
        raise StoreError(f"{self.folder}: another process took the lock at the same time; try again")

    def _claim(self) -> None:
        """Make the lock, whole at once: a process that dies, or finds no room, while it writes leaves none."""
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=writing_prefix()) as file:
            file.write(holder)
            file.flush()
            try:
                os.link(file.name, self._lock)
                return
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                descriptor = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with os.fdopen(descriptor, "w") as lock:
            lock.write(holder)

    def _keep_lease(self) -> None:
        """Touch the lock while this process holds it, so that other machines see that it lives."""
        while not self._released.wait(LEASE / 20):
            with suppress(OSError):
                os.utime(self._lock)

    def _break_stale_lock(self) -> None:
        holder = lock_holder(self.folder)
        try:
            age = self._time_there() - self._lock.stat().st_mtime
            if holder is None and age < UNWRITTEN:  # once it is old nobody is writing it
                time.sleep(UNWRITTEN - age)
                holder = lock_holder(self.folder)
            if holder is not None and not _abandoned(holder, age):
                raise StoreError(
                    f"{self.folder}: held by process {holder[0]} on {holder[1]}; wait for it, use another --out, "
                    f"or delete {self._lock} if that process is gone"
                )
            self._lock.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(
                f"{self._lock}: no file that can be replaced ({error.strerror or error}); delete it"
            ) from error
        if holder is not None and holder[1] != socket.gethostname():
            minutes = f"{age / 60:.0f} minutes"
            logging.getLogger("opmix").warning(
                "%s: process %s on %s has not been heard of for %s; its lock is broken", self.folder, *holder, minutes
            )

    def _time_there(self) -> float:
        """The clock that the lock's time is of: a shared disk's may differ from this machine's."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=writing_prefix()) as file:
            return os.fstat(file.fileno()).st_mtime

    def _check_held(self) -> None:
        if self._holder is not None and (now := lock_holder(self.folder)) != self._holder:
            who = "nobody" if now is None else f"process {now[0]} on {now[1]}"
            raise StoreError(
                f"{self.folder}: {who} holds the lock that this process took; one process at a time writes here"
            )

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished step, or None; a damaged record counts as none."""
        try:
            content = json.loads((self.folder / "steps" / f"{name}.json").read_text(encoding="utf-8"))
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
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
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
        key = fingerprint(inputs)
        found = self.found(name, key) if self.ranks.first else None
        found = self.ranks.shared(found if found is not None and intact() else None)
        if found is not None:
            return found, True
        self._check_held()
        with span(name, "step"):
            started, result = time.perf_counter(), plain(work()) if together else None
            with self.ranks.agreed():
                if self.ranks.first:
                    result = result if together else plain(work())
                    with span("record", "saving"):
                        self._write(name, key, inputs, result, time.perf_counter() - started)
            return dict(self.ranks.shared(result or {})), False

    def _write(self, name: str, key: str, inputs: Mapping[str, Any], result: Any, seconds: float) -> None:
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


def lock_holder(folder: Path) -> tuple[int, str] | None:
    """Process and host that a folder's lock names; None where there is no lock, or a damaged one."""
    try:
        lock = json.loads((folder / "lock").read_text())
        pid, host = int(lock["pid"]), str(lock["host"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (pid, host) if 0 < pid < 2**31 else None


def _abandoned(holder: tuple[int, str], age: float) -> bool:
    pid, host = holder
    return age > LEASE if host != socket.gethostname() else pid == os.getpid() or not alive(pid)
