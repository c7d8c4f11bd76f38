"""Writing files whole or not at all, and the facts a manifest records."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

from opmix.errors import ConfigError, StoreError
from opmix.runs.ranks import ranks_here


def write_text(path: Path, text: str, *, lasting: bool = True) -> Path:
    """Write a file whole or not at all: temporary name, flush, rename. Of several ranks the first one writes.

    Args:
        path: File.
        text: Its content.
        lasting: Wait until the disk has it, which takes milliseconds; not needed where a power failure makes it useless anyway.

    Raises:
        StoreError: The folder cannot be written (full, read-only), or the place is taken by something else: renaming onto a device
            such as `/dev/null` would put a file in its stead, for everybody.
    """
    if not ranks_here().first:
        return path
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        raise StoreError(f"{path}: is no file; expected one, or a place where there is nothing yet")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=writing_prefix())
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    return path


def append_line(path: Path, line: str) -> None:
    """One write at a file's end: several processes may append. No link is followed, which may lead out of a run folder.

    Raises:
        OSError: It cannot be written, or is no file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(line + "\n")


def regular(path: Path) -> Path:
    """The path of a file of a run folder, unless something else lies there: a pipe would be waited for.

    Raises:
        OSError: It is neither a file nor a link to one.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file", str(path))
    return path


def json_of(path: Path) -> Any:
    """What a JSON file of a run folder holds.

    Raises:
        OSError: It cannot be read, or is no file.
        RecursionError: It is nested too deeply.
        ValueError: It is no JSON, or none that can be written again.
    """
    return parsed_json(regular(path).read_text(encoding="utf-8"))


def parsed_json(text: str) -> Any:
    """JSON whose texts can be written and shown again: half a surrogate cannot; raises as `json_of` does."""
    found = json.loads(text)
    if _HALF.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""The first or second half of a surrogate, alone or with its other."""


def writing_prefix() -> str:
    """How temporary names begin: they tell whose they are, so that those of dead processes can be removed."""
    return f".writing-{os.getpid()}-{socket.gethostname()}-"


def remove_leftovers(folder: Path, pattern: str = ".writing-*") -> None:
    """Remove what processes that died while writing left: those of this machine, and any that is older than a day.

    Args:
        folder: Where to look.
        pattern: Glob of temporary names, such as `**/.writing-*`.
    """
    try:
        found_there = list(folder.glob(pattern))
    except FileNotFoundError:  # a job that outlived its driver has just removed a folder: the next start looks again
        return
    for path in found_there:
        found = re.fullmatch(r"\.writing-(\d+)-(.+)-[^-]+", path.name)
        try:
            if found is not None and found[2] == socket.gethostname():
                abandoned = not alive(int(found[1]))
            else:
                abandoned = time.time() - path.stat().st_mtime > 24 * 3600
        except OSError:
            continue  # its process has just renamed it
        if abandoned and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif abandoned:
            with suppress(OSError):
                path.unlink()


def sync_new(folder: Path, since: float) -> None:
    """Have the disk keep what was written below a folder since a time of `time.time()`, whoever wrote it.

    Libraries that save models and tokenizers sync nothing; a record that outlived a power failure would vouch for empty files.
    """
    # `walk` passes over folders that another process has just removed.
    for place, _, names in os.walk(folder):
        for path in (Path(place), *(Path(place) / name for name in names)):
            with suppress(FileNotFoundError, PermissionError):  # another process's, renamed just now
                if path.is_symlink() or path.lstat().st_ctime < since or not (path.is_file() or path.is_dir()):
                    continue
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def write_json(path: Path, content: Mapping[str, Any], *, lasting: bool = True) -> Path:
    """Write JSON as `write_text` does; NaN and infinity become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(path, text, lasting=lasting)


def plain(value: Any) -> Any:
    """The value as JSON can hold it.

    Raises:
        ConfigError: It holds itself, or is nested deeper than Python goes.
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise ConfigError(
            "a mapping or list that holds itself, or others hundreds deep; expected one that can be written as JSON"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if callable(
        whole := getattr(value, "tolist", None)
    ):  # arrays and numbers of numpy, which this module need not load
        value = whole()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


_SECRET = re.compile(r"(^|_)(token|key|secret|password|passwd|credentials?)s?$", re.IGNORECASE)
_SPECIAL = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask)_", re.IGNORECASE)
HIDDEN = "***"


def without_secrets(value: Any, *, inside: bool = False) -> Any:
    """The value with the texts of `hub_token`, `api_key` and the like under a `trainer` key as `***`."""
    if isinstance(value, Mapping):
        return {key: _hidden(str(key), item, inside=inside or key == "trainer") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, inside=inside) for item in value]
    return value


def _hidden(key: str, value: Any, *, inside: bool) -> Any:
    if inside and isinstance(value, str) and _SECRET.search(key) and not _SPECIAL.search(key):
        return HIDDEN
    return without_secrets(value, inside=inside)


# The last two are all that torch says of a zip archive that it could not finish.
_FULL = (
    "No space left",
    "File too large",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
)


def full_disk(error: BaseException, folder: Path | None = None) -> StoreError | None:
    """What to say where a full disk is behind an error; None where it is not."""
    if not _is_full(error):
        return None
    return StoreError(
        f"{'' if folder is None else f'{folder}: '}the disk is full ({error}); free space there and run the same "
        "command again: what was finished is kept, the rest goes on from the last whole checkpoint"
    )


def _is_full(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, says so: torch closes a half-written file and complains of that."""
    while error is not None:
        if any(sign in str(error) for sign in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


DAMAGED_ARRAY = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, SyntaxError),
    *(
        TokenError,
        BadZipFile,
        NotImplementedError,
    ),
)
"""What numpy raises on files that are none of its own, or damaged; their header is read as Python."""


def files_signature(folder: Path) -> str:
    """Names, sizes, and the first and last 64 KB of the files directly in a folder (or of one file), hashed.

    Tells one checkpoint from another without reading all of it; not moved by copying or touching.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name if folder.is_dir() else ''}|{size}|".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


_SAMPLE = 1 << 16


def environment() -> dict[str, Any]:
    """Versions and machine, for the manifest."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "commit": source_commit(),
        "versions": dict(_versions()),
    }


@cache
def _versions() -> dict[str, str | None]:
    """Looking them up takes longer than writing a record, and every record asks."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in (
        "opmix",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "numpy",
        "scipy",
        "clarabel",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@cache
def source_commit() -> str | None:
    """Commit of opmix' own source tree, where it runs from one; None: from a package."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists() or not (source / "src" / "opmix").is_dir():
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def existing(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def default_cache_dir() -> Path:
    """Where tokenised data are kept unless a configuration says otherwise: `$XDG_CACHE_HOME/opmix` or `~/.cache/opmix`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opmix"
