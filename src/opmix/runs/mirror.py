"""One folder in two places: of this machine, where a run works, and of an object store, where it is kept as it grows.

What is finished (a step's record, a checkpoint's marker) goes up after the files that it vouches for, so that whoever begins elsewhere
finds nothing half. A start gets what is there and goes on from it. Nobody but the holder of the store's lock writes.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from opmix.runs.files import write_json
from opmix.runs.remote import RemoteFolder
from opmix.runs.remote_lock import RemoteLock

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
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
