"""Runs that are given a URL: the folder of this machine that they work in, kept in an object store (`runs.mirror`)."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opmix.domain import user_path
from opmix.errors import ConfigError, StoreError
from opmix.runs.files import default_cache_dir
from opmix.runs.mirror import Mirror
from opmix.runs.ranks import ranks_here
from opmix.runs.remote import RemoteFolder, url_of
from opmix.runs.remote_lock import LockLostError, RemoteLock

EVERY = 30.0
"""Seconds between two looks at what has become whole meanwhile, such as checkpoints; each says too that this process lives."""


def place_of(url: str, kind: str = "runs") -> Path:
    """Where a run folder on a URL is worked on: the same for every process of a user on a machine."""
    key = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
    return default_cache_dir() / kind / key / (url.rstrip("/").rpartition("/")[2] or "run")


def local_folder(out: str | Path) -> Path:
    """A folder of this machine, for what cannot be kept at a URL.

    Raises:
        ConfigError: A URL, or what the system does not take for a path.
    """
    if (url := url_of(out)) is not None:
        raise ConfigError(f"out: {url}; expected a folder of this machine")
    return user_path(out)


@contextmanager
def run_folder(out: str | Path) -> Iterator[Path]:
    """A folder of this machine for a run that is kept at `out`; where that is one of this machine already, just it.

    On leaving, everything is in the store and its lock is given back, also after an error. Of several ranks the first one does it.

    Raises:
        ConfigError: No path, no such kind of store, its package is missing, or ranks on several hosts, which would not see each other's
            files.
        StoreError: Another process holds the folder, or the store does not answer.
    """
    if (url := url_of(out)) is None:
        yield user_path(out)
        return
    ranks = ranks_here()
    if int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)) != ranks.size:
        raise ConfigError(
            f"--out {url}: ranks on several hosts need a folder that all of them see; expected a shared one"
        )
    local, kept = place_of(url), None
    with ranks.agreed():
        if ranks.first:
            kept = _Kept(Mirror(RemoteFolder(url), local))
    try:
        yield local
    except BaseException:
        if kept is not None:
            kept.end(failed=True)
        raise
    with ranks.agreed():
        if kept is not None:
            kept.end()


class _Kept:
    """A mirror while this process holds its store's lock; a thread looks after both.

    Raises:
        StoreError: Another process holds the folder, or the store does not answer.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self._lock = mirror, RemoteLock(mirror.remote)
        self._over, self._thread = threading.Event(), threading.Thread(target=self._look_after, daemon=True)
        self._lock.take()
        try:
            mirror.local.mkdir(parents=True, exist_ok=True)
            mirror.pull()
        except BaseException:
            self._lock.release()
            raise
        _KEPT.append(self)
        self._thread.start()

    def holds(self, folder: Path) -> bool:
        """Whether a folder is part of the run."""
        return folder.resolve().is_relative_to(self.mirror.local.resolve())

    def push(self) -> None:
        """Put what is finished; where the store does not answer, the run goes on, and the next time it may.

        Raises:
            LockLostError: Another process has taken the run.
        """
        try:
            self.mirror.push(self._lock)
        except LockLostError:
            raise
        except StoreError as error:
            logging.getLogger("opmix").warning("%s; the run goes on, its copy there is behind", error)

    def _look_after(self) -> None:
        while not self._over.wait(EVERY):
            with suppress(StoreError):  # the run itself says so at its next record
                self._lock.renew()
                self.push()

    def end(self, *, failed: bool = False) -> None:
        """Put everything and give the lock back; `failed`: an error is on its way, which none of this may hide.

        Raises:
            StoreError: The store does not answer; what it lacks is in the folder of this machine.
        """
        self._over.set()
        self._thread.join()
        _KEPT.remove(self)
        try:
            self.mirror.push(self._lock)
            self._lock.release()
        except StoreError as error:
            if not failed:
                raise StoreError(f"{error}; all of the run is in {self.mirror.local}") from error
            logging.getLogger("opmix").warning("%s", error)


_KEPT: list[_Kept] = []
"""Runs that this process keeps in stores."""
_READ: dict[Path, Mirror] = {}
"""Copies for readers."""


def keep(folder: Path) -> None:
    """A record was written in a folder: if it is part of a run that is kept in a store, it goes there.

    Raises:
        LockLostError: Another process has taken the run.
    """
    for kept in _KEPT:
        if kept.holds(folder):
            kept.push()


def kept_at(folder: Path) -> str | None:
    """The URL that a folder's run is kept at while this process holds it, or None."""
    return next((kept.mirror.remote.url for kept in _KEPT if kept.holds(folder)), None)


def copy_of(folder: str | Path) -> Path:
    """A folder of this machine with what readers need of a run, or of several below a URL; else `folder` itself.

    Raises:
        ConfigError: No such kind of store, or its package is missing.
        StoreError: Nothing there, or the store does not answer.
    """
    if (url := url_of(folder)) is None:
        return Path(folder)
    mirror = Mirror(RemoteFolder(url), place_of(url, "read"), light=True)
    mirror.pull()
    if not mirror.local.is_dir() or not any(mirror.local.iterdir()):
        shutil.rmtree(mirror.local, ignore_errors=True)
        raise StoreError(f"{url}: nothing there; expected the address that a run was given as --out")
    _READ[mirror.local] = mirror
    return mirror.local


def refresh(folder: Path) -> None:
    """Get what has changed of a run that `copy_of` got; of others nothing."""
    if (mirror := _READ.get(folder)) is not None:
        mirror.pull()
