"""What a program does to a folder, seen from inside it: every write, rename, removal, and the folder as it is just before each.

Python tells an audit hook of every file that it opens, renames or removes, in the standard library and in everybody's code. Libraries
that write without it (safetensors, torch's archives) are met by the limit on a file's size.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

State = tuple[tuple[str, str | None], ...]
"""Name and content's hash of every file; None: a folder."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def on_change(root: Path, act: Callable[[str, str], None]) -> None:
    """Call `act(event, path)` before every change below `root`, for as long as this process lives."""
    inside = str(root) + os.sep

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            path, flags = arguments[0], arguments[2]
            changes = isinstance(flags, int) and flags & WRITES
        elif event in CHANGES:
            path, changes = arguments[0], True
        else:
            return
        if changes and isinstance(path, str | bytes | os.PathLike):
            name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - quick, and no pathlib inside an audit hook
            if name.startswith(inside):
                act(event, name)

    sys.addaudithook(hook)


class Blobs:
    """Contents by hash, and the states of a folder that are made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[int, int, int], str] = {}

    def keep(self, path: str) -> str:
        """Hash of a file, whose content is kept."""
        facts = os.stat(path)  # noqa: PTH116
        key = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if key not in self._known:
            with open(path, "rb") as file:  # noqa: PTH123
                content = file.read()
            self._known[key] = hashlib.blake2b(content, digest_size=16).hexdigest()
            blob = self.folder / self._known[key]
            if not blob.exists():
                blob.write_bytes(content)
        return self._known[key]

    def state(self, root: Path) -> State:
        """What lies below a folder now."""
        found: list[tuple[str, str | None]] = []
        for folder, names, files in os.walk(root):
            names.sort()
            inside = os.path.relpath(folder, root)
            found += [(os.path.normpath(os.path.join(inside, n)), None) for n in names]  # noqa: PTH118
            for name in sorted(files):
                try:
                    found.append(
                        (os.path.normpath(os.path.join(inside, name)), self.keep(os.path.join(folder, name)))  # noqa: PTH118
                    )
                except OSError:
                    continue
        return tuple(found)

    def restore(self, state: State, root: Path, *, lost: frozenset[str] = frozenset()) -> None:
        """Make a folder what it was; contents in `lost` never reached the disk: their files are empty."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for name, content in state:
            path = root / name
            if content is None:
                path.mkdir(exist_ok=True)
            elif content in lost:
                path.write_bytes(b"")
            else:
                shutil.copyfile(self.folder / content, path)
