"""A folder of an object store: what a run folder on a URL rests on. fsspec reads and writes it.

An object is there whole or not at all, and nothing is renamed. What only one may make is made by a conditional put (`mode="create"`).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from opmix.errors import ConfigError, StoreError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_TRIES = 4


def url_of(path: str | Path) -> str | None:
    """The address that somebody gave as a folder, also where it went through a `Path` (`s3:/bucket/run`); None: a path of this machine.

    Examples:
        >>> url_of("s3://bucket/run/"), url_of(Path("s3://bucket/run")), url_of("runs/s3")
        ('s3://bucket/run', 's3://bucket/run', None)
        >>> url_of(Path("file:///tmp/run"))
        'file:///tmp/run'
    """
    if (found := _ADDRESS.fullmatch(str(path))) is None:
        return None
    protocol, rest = found.groups()
    return f"{protocol}://{'/' if protocol in ('file', 'local') else ''}{rest.strip('/')}"


class RemoteFolder:
    """A folder of an object store.

    Args:
        url: As people write it; credentials and end points are those of the environment (`AWS_ENDPOINT_URL`, ...).

    Raises:
        ConfigError: No such kind of store, or its package is missing.
        StoreError: The store does not answer, or not to us.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url, protocol = url, url.partition(":")[0]
        try:
            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            package = _EXTRAS.get(protocol)
            remedy = f"pip install 'opmix[{package}]'" if package else f"install what fsspec says: {error}"
            raise ConfigError(f"{url}: {protocol}:// needs a package that is not here; {remedy}") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}; expected s3://, gs:// or another address that fsspec knows") from error
        self._root = root.rstrip("/")
        if not self._root:
            raise ConfigError(f"{url}: names no place in the store; expected one, such as s3://bucket/run")

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _said(self, error: Exception) -> StoreError:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return StoreError(
            f"{self.url}: the store refuses or does not answer ({why}); check address, credentials and network, "
            "then run the "
            "same command again"
        )

    def _tried(self, call: Any, *given: Any, **named: Any) -> Any:
        """A call, a few times: networks fail for seconds.

        Raises:
            FileNotFoundError: Nothing of that name.
            StoreError: Still no answer.
        """
        for attempt in range(_TRIES):
            try:
                return call(*given, **named)
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each store has errors of its own
                if attempt + 1 == _TRIES or isinstance(error, PermissionError):
                    raise self._said(error) from error
                time.sleep(0.2 * 4**attempt)
        raise AssertionError

    def files(self) -> dict[str, str]:
        """Every object by its name below the folder, with a tag that changes when it does."""
        try:
            found = self._tried(self._fs.find, self._root, detail=True)
        except FileNotFoundError:
            return {}
        inside = len(self._root.lstrip("/")) + 1
        return {name.lstrip("/")[inside:]: _tag(info) for name, info in found.items() if info.get("type") == "file"}

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return int(self._tried(self._fs.info, self._place(name))["size"])

    def read(self, name: str) -> bytes | None:
        """Content of an object; None: it is not there."""
        try:
            content: bytes = self._tried(self._fs.cat_file, self._place(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> str:
        """Put an object whole; its tag."""
        place = self._place(name)
        self._made(place)
        self._tried(self._fs.pipe_file, place, content)
        return _tag(self._tried(self._fs.info, place))

    def create(self, name: str, content: bytes) -> bool:
        """Put an object where there is none; False: there is one."""
        place = self._place(name)
        self._made(place)
        try:
            if "file" in self._protocols:
                with Path(place).open("xb") as file:  # fsspec's own looks first and writes then
                    file.write(content)
            else:
                self._fs.pipe_file(place, content, mode="create")
        except FileExistsError:
            return False
        except Exception as error:  # each store has errors of its own
            if self.read(name) == content:  # an answer that was lost on its way
                return True
            raise self._said(error) from error
        # A store without conditional puts may have let two through: the later one has it.
        return self.read(name) == content

    def upload(self, file: Path, name: str) -> str:
        """Put a file of any size; its tag.

        Raises:
            FileNotFoundError: The file has gone meanwhile.
        """
        place = self._place(name)
        self._made(place)
        self._tried(self._fs.put_file, str(file), place)
        return _tag(self._tried(self._fs.info, place))

    def download(self, name: str, file: Path) -> None:
        """Get an object into a file, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".writing-{os.getpid()}-{socket.gethostname()}-{secrets.token_hex(4)}")
        try:
            self._tried(self._fs.get_file, self._place(name), str(temporary))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete an object, where there is one."""
        with suppress(FileNotFoundError):
            self._tried(self._fs.rm_file, self._place(name))

    def age(self, name: str) -> float:
        """Seconds since an object was written, by the store's own clock."""
        probe = f".clock-{secrets.token_hex(4)}"
        self.write(probe, b"")
        try:
            there = self._tried(self._fs.modified, self._place(probe))
            return float((there - self._tried(self._fs.modified, self._place(name))).total_seconds())
        finally:
            self.remove(probe)

    def _made(self, place: str) -> None:
        if "file" in self._protocols or "memory" in self._protocols:  # object stores have no folders
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)

    @property
    def _protocols(self) -> tuple[str, ...]:
        given = self._fs.protocol
        return (given,) if isinstance(given, str) else tuple(given)


def _tag(info: dict[str, Any]) -> str:
    """What changes when an object does."""
    known = next((info[key] for key in ("ETag", "etag", "md5Hash") if info.get(key)), None)
    when = next((info[key] for key in ("mtime", "LastModified", "created") if info.get(key)), "")
    return str(known) if known is not None else f"{info.get('size')} {when}"
