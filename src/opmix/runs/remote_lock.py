"""The lock of a folder of an object store.

lock    pid, host and a word of the process that holds the folder; written again every half minute
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time

from opmix.errors import StoreError
from opmix.runs.files import alive
from opmix.runs.lock import LEASE, UNWRITTEN
from opmix.runs.remote import RemoteFolder


class LockLostError(StoreError):
    """Another process has taken the folder that this one held."""


class RemoteLock:
    """The lock of a folder of an object store; taken by one process at a time.

    A holder that another finds dead (a process of the same host) or silent for ten minutes loses it, and notices before it writes again.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        self._content = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "word": secrets.token_hex(8)}
        ).encode()
        self._renewed = threading.Lock()
        self.held = False

    def take(self) -> None:
        """Take it.

        Raises:
            StoreError: Another process holds the folder.
        """
        for _ in range(3):
            if self._folder.create("lock", self._content):
                self.held = True
                return
            self._break_stale()
        raise StoreError(f"{self._folder.url}: another process took the lock at the same time; try again")

    def _break_stale(self) -> None:
        try:
            age = self._folder.age("lock")
            while (there := self._folder.read("lock")) is not None and _holder(there) is None and age < UNWRITTEN:
                time.sleep(0.1)  # not every store shows an object only when it is whole
                age = self._folder.age("lock")
        except FileNotFoundError:
            return
        if there is None:
            return
        holder = _holder(there)
        if holder is not None and not _abandoned(holder, age):
            raise StoreError(
                f"{self._folder.url}: held by process {holder[0]} on {holder[1]}; wait for it, use another --out, "
                "or delete "
                f"{self._folder.url}/lock if that process is gone"
            )
        if self._folder.read("lock") == there:  # else somebody was faster
            self._folder.remove("lock")

    def check(self) -> None:
        """Refuse to write once somebody else holds the folder.

        Raises:
            LockLostError: Somebody does.
        """
        if (there := self._folder.read("lock")) != self._content:
            found = None if there is None else _holder(there)
            who = "nobody" if found is None else f"process {found[0]} on {found[1]}"
            raise LockLostError(
                f"{self._folder.url}: {who} holds the lock that this process took; one process at a time writes here"
            )

    def renew(self) -> None:
        """Say that this process lives.

        Raises:
            LockLostError: Somebody else holds the folder.
        """
        with self._renewed:
            if self.held:
                self.check()
                self._folder.write("lock", self._content)

    def release(self) -> None:
        """Give it back, where it is still ours."""
        with self._renewed:
            if self.held and self._folder.read("lock") == self._content:
                self._folder.remove("lock")
            self.held = False


def _holder(content: bytes) -> tuple[int, str] | None:
    try:
        told = json.loads(content)
        return int(told["pid"]), str(told["host"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _abandoned(holder: tuple[int, str], age: float) -> bool:
    pid, host = holder
    return age > LEASE or (host == socket.gethostname() and pid != os.getpid() and not alive(pid))
