"""Who holds a run folder: one process at a time.

    lock    pid and host of the process that holds the folder; touched every half minute

Whoever takes, breaks or releases it is alone while at it, by a lock of the system (`flock`) on the folder itself: else two could both find
a dead holder, and the slower one would remove what the faster one has just taken. The system lets go of it with the process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opmix.errors import StoreError
from opmix.runs.files import alive, json_of, writing_prefix

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LEASE = 600.0
"""Seconds after which the lock of another machine that nobody has touched is broken."""
UNWRITTEN = 5.0
"""Seconds after which a lock without a holder is damaged, and not one that is just being written."""
PATIENCE = 30.0
"""Seconds to wait for others that take, break or release a lock, which takes milliseconds."""


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Do what no two processes, or threads, may do in a folder at once; not for long work.

    Args:
        folder: Must exist.

    Yields:
        Whether nobody else is in here; False: somebody still was after `PATIENCE`. True too where the system or the file system has
        no such locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    except OSError:  # without the right to list it
        descriptor = None
    if descriptor is None:
        yield True
        return
    try:
        yield _locked(descriptor, time.monotonic() + PATIENCE)
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile holds the descriptor too
        os.close(descriptor)


def _locked(descriptor: int, end: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        except OSError:  # a file system that has none
            return True
        else:
            return True


class FolderLock:
    """The lock of a run folder.

    Args:
        folder: Must exist when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "lock"
        self._holder: tuple[int, str] | None = None
        self._released = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this object has taken it."""
        return self._holder is not None

    def take(self) -> None:
        """Hold the folder, for as long as this process lives or until it is released.

        Raises:
            StoreError: Somebody else holds it, or the folder cannot be written.
        """
        for _ in range(5):
            try:
                with alone_in(self.folder) as alone:
                    wait = self._clear() if alone else None
                    if wait == 0.0:
                        self._claim()
                        break
            except FileExistsError:  # by somebody on a file system without `flock`
                continue
            except OSError as error:
                raise StoreError(
                    f"{self.folder}: cannot be written ({error.strerror or error}); free space or choose another --out"
                ) from error
            if wait is None:
                break
            time.sleep(wait)
        if not self.held:
            raise StoreError(f"{self.folder}: another process took the lock at the same time; try again")
        self._released = threading.Event()
        threading.Thread(target=self._keep_lease, args=(self._released,), daemon=True).start()

    def release(self) -> None:
        """Let others hold the folder; nothing where this object does not hold it."""
        self._released.set()
        if self._holder is None:
            return
        try:
            with alone_in(self.folder):
                if lock_holder(self.folder) == self._holder:
                    self.file.unlink(missing_ok=True)
        finally:
            _HELD_HERE.discard(self._here)
            self._holder = None

    def check(self) -> None:
        """Refuse to go on where the lock that was taken is not there any more.

        Raises:
            StoreError: Somebody else has taken it, or it was deleted.
        """
        if self._holder is not None and (now := lock_holder(self.folder)) != self._holder:
            who = "nobody" if now is None else f"process {now[0]} on {now[1]}"
            raise StoreError(
                f"{self.folder}: {who} holds the lock that this process took; one process at a time writes here"
            )

    @property
    def _here(self) -> tuple[int, Path]:
        return os.getpid(), self.folder.resolve()

    def _clear(self) -> float:
        """Remove the lock of a holder that is gone; nobody else does so meanwhile.

        Returns:
            Seconds to wait for whoever may be writing it; 0: there is no lock now.
        """
        try:
            written = self.file.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        holder, age = lock_holder(self.folder), self._time_there() - written
        if holder is None and age < UNWRITTEN:
            return min(UNWRITTEN - age, UNWRITTEN)
        if holder is not None and not self._abandoned(holder, age):
            raise StoreError(
                f"{self.folder}: held by process {holder[0]} on {holder[1]}; wait for it, use another --out, "
                f"or delete {self.file} if that process is gone"
            )
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.file}: no file that can be replaced ({error.strerror or error}); delete it"
            ) from error
        if holder is not None and holder[1] != socket.gethostname():
            minutes = f"{age / 60:.0f} minutes"
            logging.getLogger("opmix").warning(
                "%s: process %s on %s has not been heard of for %s; its lock is broken", self.folder, *holder, minutes
            )
        return 0.0

    def _abandoned(self, holder: tuple[int, str], age: float) -> bool:
        pid, host = holder
        if host != socket.gethostname():
            return age > LEASE
        if pid == os.getpid():  # a former process of this number, as every first one of a container is
            return self._here not in _HELD_HERE
        return not alive(pid)

    def _claim(self) -> None:
        """Make the lock, whole at once: a process that dies, or finds no room, while it writes leaves none."""
        holder = (os.getpid(), socket.gethostname())
        content = json.dumps({"pid": holder[0], "host": holder[1]})
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=writing_prefix()) as file:
            file.write(content)
            file.flush()
            try:
                os.link(file.name, self.file)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                with os.fdopen(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as lock:
                    lock.write(content)
        _HELD_HERE.add(self._here)
        self._holder = holder

    def _keep_lease(self, released: threading.Event) -> None:
        """Touch the lock while this process holds it, so that other machines see that it lives."""
        while not released.wait(LEASE / 20):
            with suppress(OSError):
                os.utime(self.file)

    def _time_there(self) -> float:
        """The clock that the lock's time is of: a shared disk's may differ from this machine's."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=writing_prefix()) as file:
            return os.fstat(file.fileno()).st_mtime


_HELD_HERE: set[tuple[int, Path]] = set()
"""Process and folder of the locks that are held in this process; a forked child inherits those of another."""


def break_locks(folder: Path) -> None:
    """Remove the locks of all run folders below one, whose holders are gone or not wanted any more; a live one ends at its next step.

    A lock of another machine tells nobody that its process has ended: whoever took that process's place must say so.
    """
    for place, _, names in os.walk(folder):
        if "lock" in names and lock_holder(Path(place)) is not None:
            (Path(place) / "lock").unlink(missing_ok=True)


def lock_holder(folder: Path) -> tuple[int, str] | None:
    """Process and host that a folder's lock names; None where there is no lock, or a damaged one."""
    try:
        lock = json_of(folder / "lock")
        pid, host = int(lock["pid"]), str(lock["host"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (pid, host) if 0 < pid < 2**31 else None
