"""A run folder in which every expensive step is a record keyed by a fingerprint of its inputs.

Running again is resuming: a step whose record has the same fingerprint is not done again; one whose inputs changed is stale and is.

    steps/<name>.json    {"name", "fingerprint", "inputs", "result", "seconds", "finished"}
    lock                 pid and host of the process that holds the folder
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opmix.errors import StoreError
from opmix.runs.files import plain, write_json


def fingerprint(value: Any) -> str:
    """Stable hash of a JSON-like value."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class RunStore:
    """A run folder held by one process at a time; use as a context manager.

    Args:
        folder: Made where it does not exist.
        command: What the folder is for; None: whatever it holds.

    Raises:
        StoreError: Another live process holds the folder, it holds a run of another command, or it cannot be written.
    """

    def __init__(self, folder: Path, command: str | None = None) -> None:
        self.folder = folder
        self._command = command
        self._held = False

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot be created ({error.strerror or error}); choose another --out"
            ) from error
        self.check_command()
        self._acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            self._lock.unlink(missing_ok=True)
            self._held = False

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
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        for _ in range(2):
            try:
                descriptor = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._break_stale_lock(holder["host"])
                continue
            except OSError as error:
                raise StoreError(
                    f"{self.folder}: cannot be written ({error.strerror or error}); choose another --out"
                ) from error
            with os.fdopen(descriptor, "w") as file:
                json.dump(holder, file)
            self._held = True
            return
        raise StoreError(f"{self.folder}: another process took the lock at the same time; try again")

    def _break_stale_lock(self, host: Any) -> None:
        try:
            other = json.loads(self._lock.read_text())
            pid, where = int(other["pid"]), other["host"]
            if not 0 < pid < 2**31:
                raise ValueError(pid)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, OverflowError):
            # Killed between creating and writing the lock: old enough means nobody is writing it.
            if time.time() - self._lock.stat().st_mtime < 5:
                raise StoreError(f"{self.folder}: another process is taking the lock; try again") from None
            self._lock.unlink(missing_ok=True)
            return
        if where != host or (pid != os.getpid() and _alive(pid)):
            raise StoreError(
                f"{self.folder}: held by process {pid} on {where}; wait for it, use another --out, "
                f"or delete {self._lock} if that process is gone"
            )
        self._lock.unlink(missing_ok=True)

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished step, or None; a damaged record counts as none."""
        try:
            content = json.loads((self.folder / "steps" / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def found(self, name: str, key: str) -> dict[str, Any] | None:
        """The result of a finished step with just these inputs (`key` is their fingerprint), or None."""
        record = self.record(name)
        return dict(record["result"]) if record is not None and record.get("fingerprint") == key else None

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to `events.jsonl`: what happened when, for people and programs that follow a run.

        Raises:
            StoreError: It cannot be written.
        """
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
    ) -> tuple[dict[str, Any], bool]:
        """Do a step, or find it done.

        Args:
            name: File name of the record.
            inputs: Everything the result depends on.
            work: Does it and returns a JSON-like result; files it leaves must be complete when it returns.
            intact: Whether the files of a recorded step are still there.

        Returns:
            The result, and whether it was found rather than done.
        """
        key = fingerprint(inputs)
        found = self.found(name, key)
        if found is not None and intact():
            return found, True
        started = time.perf_counter()
        result = plain(work())
        write_json(
            self.folder / "steps" / f"{name}.json",
            {
                "name": name,
                "fingerprint": key,
                "inputs": inputs,
                "result": result,
                "seconds": time.perf_counter() - started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        return result, False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
