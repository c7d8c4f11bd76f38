"""A run folder on a URL: worked on in a folder of this machine, and kept in an object store as it grows.

What is finished (a step's record, a checkpoint's marker) goes up after the files that it vouches for, so that whoever begins elsewhere
finds nothing half. A start gets what is there and goes on from it. Nobody but the holder of the store's lock writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from opmix.errors import ConfigError, StoreError
from opmix.runs.files import default_cache_dir, write_json
from opmix.runs.ranks import ranks_here
from opmix.runs.remote import LockLostError, RemoteFolder, RemoteLock, url_of

EVERY = 30.0
"""Seconds between two looks at what has become whole meanwhile, such as checkpoints; each says too that this "
"process lives."""
_MARKER = "complete.json"
_HEAVY = {"checkpoints", "model", "probes", "optimizer.pt"}
"""What readers of a run do not need: most of its bytes."""
_LEFT_OUT = {"lock", "tasks"}
"""What means something on the machine that runs only; readers see the store's own lock."""
_HIDDEN_AND_NEEDED = {".metadata"}
"""Of a sharded checkpoint."""


@dataclass(frozen=True)
class _Known:
    """A file as it was when both sides were the same."""

    tag: str
    size: int
    time: int


@dataclass(eq=False)
class Mirror:
    """One folder, here and in a store."""

    remote: RemoteFolder
    local: Path
    light: bool = False
    """Only what readers need."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _working: threading.Lock = field(default_factory=threading.Lock)

    @property
    def _state(self) -> Path:
        return self.local.with_name(f"{self.local.name}.state.json")

    def pull(self) -> None:
        """Get what the store has and this machine has not; records come after what they vouch for.

        Where both have changed a file since they were the same, the store's counts: another machine has gone on with the run.

        Raises:
            StoreError: The store does not answer.
        """
        with self._working:
            self._read_state()
            there = {n: tag for n, tag in self.remote.files().items() if self._wanted(n)}
            for name in sorted(self._known.keys() - there.keys(), key=_is_marker, reverse=True):
                (self.local / name).unlink(missing_ok=True)
                del self._known[name]
            for name, tag in sorted(there.items(), key=lambda item: (_is_marker(item[0]), item[0])):
                known, file = self._known.get(name), self.local / name
                if known is not None and known.tag == tag and file.is_file():
                    continue
                self.remote.download(name, file)
                self._known[name] = _as_it_is(file, tag)
            self._write_state()

    def push(self, lock: RemoteLock) -> None:
        """Put what this machine has and the store has not, and remove there what is gone here.

        Raises:
            StoreError: The store does not answer, or another process has taken the folder.
        """
        with self._working:
            changed = self._changed()
            if not changed and not self._gone():
                return
            lock.check()
            # A marker that stands now vouches for files that are whole now; read first, it goes up after them.
            markers = {name: content for name in changed if _is_marker(name) and (content := self._content(name))}
            for name in changed:
                if not _is_marker(name):
                    self._up(name)
            for name, content in markers.items():
                tag = self.remote.write(name, content)
                with suppress(FileNotFoundError):
                    now = _as_it_is(self.local / name, tag)
                    self._known[name] = now if now.size == len(content) else _Known(tag, len(content), 0)
            for name in sorted(self._gone(), key=_is_marker, reverse=True):
                self.remote.remove(name)
                del self._known[name]
            self._write_state()

    def _up(self, name: str) -> None:
        file = self.local / name
        with suppress(FileNotFoundError):  # a checkpoint that is no longer needed
            before = _as_it_is(file, "")
            tag = self.remote.upload(file, name)
            self._known[name] = _Known(tag, before.size, before.time)

    def _content(self, name: str) -> bytes | None:
        try:
            return (self.local / name).read_bytes()
        except FileNotFoundError:
            return None

    def _changed(self) -> list[str]:
        """Names of files that are not in the store as they are here, the oldest first."""
        found = []
        for file in self.local.rglob("*"):
            name = file.relative_to(self.local).as_posix()
            if not self._wanted(name):
                continue
            with suppress(FileNotFoundError):
                if file.is_file() and not file.is_symlink():
                    now, known = _as_it_is(file, ""), self._known.get(name)
                    if known is None or (known.size, known.time) != (now.size, now.time):
                        found.append((now.time, name))
        return [name for _, name in sorted(found)]

    def _gone(self) -> list[str]:
        return [name for name in self._known if not (self.local / name).is_file()]

    def _wanted(self, name: str) -> bool:
        parts = name.split("/")
        hidden = any(part.startswith(".") and part not in _HIDDEN_AND_NEEDED for part in parts)
        if self.light:
            return not hidden and not _HEAVY & {*parts}
        return not hidden and parts[0] not in _LEFT_OUT

    def _read_state(self) -> None:
        if self._known:
            return
        try:
            content = json.loads(self._state.read_text(encoding="utf-8"))
            self._known = {name: _Known(*facts) for name, facts in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            self._known = {}

    def _write_state(self) -> None:
        files = {name: [one.tag, one.size, one.time] for name, one in self._known.items()}
        write_json(self._state, {"url": self.remote.url, "files": files}, lasting=False)


def _is_marker(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] == _MARKER or (parts[-1].endswith(".json") and "steps" in parts[:-1])


def _as_it_is(file: Path, tag: str) -> _Known:
    facts = file.stat()
    return _Known(tag, facts.st_size, facts.st_mtime_ns)


def place_of(url: str, kind: str = "runs") -> Path:
    """Where a run folder on a URL is worked on: the same for every process of a user on a machine."""
    key = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
    return default_cache_dir() / kind / key / (url.rstrip("/").rpartition("/")[2] or "run")


@contextmanager
def run_folder(out: str | Path) -> Iterator[Path]:
    """A folder of this machine for a run that is kept at `out`; where that is one of this machine already, just it.

    On leaving, everything is in the store and its lock is given back, also after an error. Of several ranks the first one does it.

    Raises:
        ConfigError: No such kind of store, its package is missing, or ranks on several hosts, which would not see each other's files.
        StoreError: Another process holds the folder, or the store does not answer.
    """
    if (url := url_of(out)) is None:
        yield Path(out)
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
