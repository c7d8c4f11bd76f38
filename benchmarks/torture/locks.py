"""Many starts at once in one run folder, over dead, live and foreign holders: two never hold it at one time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from world import in_child

AT_ONCE = 8
LEFT = ("nothing", "dead", "foreign", "damaged", "silent", "ahead")
"""What lies there: no lock, a dead process's, another machine's (fresh, silent for an hour, from an hour ahead), half a lock."""


def slowed(rng: random.Random) -> None:
    """Every look at a lock, and every link and removal, takes as long as on a shared disk; half a lock is old enough sooner."""
    from opmix.runs import lock

    def late(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*arguments: Any, **options: Any) -> Any:
            time.sleep(rng.random() / 50)
            done = act(*arguments, **options)
            time.sleep(rng.random() / 50)
            return done

        return acted

    lock.lock_holder = late(lock.lock_holder)
    lock.UNWRITTEN = 0.3
    os.link, os.unlink = late(os.link), late(os.unlink)


def hold(folder: Path, rng: random.Random) -> None:
    """Take the lock; while it is held, nobody else may be inside."""
    from opmix.errors import StoreError
    from opmix.runs.store import RunStore

    if rng.random() < 0.5:
        slowed(rng)
    seconds, die = rng.random() / 50, rng.random() < 0.2
    try:
        with RunStore(folder / "run", "search"):
            inside = folder / "inside"
            descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)  # fails where somebody is
            os.close(descriptor)
            time.sleep(seconds)
            inside.unlink()
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
    except StoreError:
        os._exit(1)


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Rounds of `AT_ONCE` starts each."""
    deadline, rng = time.monotonic() + seconds, random.Random(1000 * seed + part[0])
    starts, held, wrong = 0, 0, []
    while starts < most // part[1] and time.monotonic() < deadline:
        shutil.rmtree(folder / "round", ignore_errors=True)
        (folder / "round" / "run").mkdir(parents=True)
        left = rng.choice(LEFT)
        lock = folder / "round" / "run" / "lock"
        if left == "dead":
            lock.write_text(json.dumps({"pid": 2**22 - 7, "host": socket.gethostname()}))
        elif left in ("foreign", "silent", "ahead"):
            lock.write_text(json.dumps({"pid": 1, "host": "another-machine"}))
            moved = time.time() + {"foreign": 0, "silent": -3600, "ahead": 3600}[left]
            os.utime(lock, (moved, moved))
        elif left == "damaged":
            lock.write_text("{")
        children = []
        for number in range(AT_ONCE):
            child = os.fork()
            if child == 0:
                ending = in_child(lambda: hold(folder / "round", rng))
                (folder / f"log-{number}").write_text(ending.said)
                os._exit(0 if ending.code == 0 else 1 if ending.code == 1 else 2 if ending.code == -9 else 3)
            children.append(child)
            rng.random()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        starts += AT_ONCE
        got = sum(code in (0, 2) for code in codes)
        held += got
        if 3 in codes:
            said = " | ".join((folder / f"log-{n}").read_text()[-300:] for n, c in enumerate(codes) if c == 3)
            wrong.append(f"seed {seed}, {left}: {said}")
        if left in ("foreign", "ahead") and got:
            wrong.append(f"seed {seed}: a lock of another machine was taken while it was fresh")
        if left not in ("foreign", "ahead") and not got:
            wrong.append(f"seed {seed}, {left}: nobody got the lock")
    return {"done": {"starts": starts, "held": held}, "wrong": wrong}
