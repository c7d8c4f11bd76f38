"""Many starts at once in one run folder, over dead, live and foreign holders: two never hold it at one time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

from world import in_child

AT_ONCE = 8


def hold(folder: Path, seconds: float, die: bool) -> None:
    """Take the lock; while it is held, nobody else may be inside."""
    from opmix.errors import StoreError
    from opmix.runs.store import RunStore

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
        left = rng.choice(("nothing", "dead", "foreign", "damaged"))
        lock = folder / "round" / "run" / "lock"
        if left == "dead":
            lock.write_text(json.dumps({"pid": 2**22 - 7, "host": socket.gethostname()}))
        elif left == "foreign":
            lock.write_text(json.dumps({"pid": 1, "host": "another-machine"}))
        elif left == "damaged":
            lock.write_text("{")
        children = []
        for number in range(AT_ONCE):
            child = os.fork()
            if child == 0:
                ending = in_child(lambda: hold(folder / "round", rng.random() / 50, rng.random() < 0.2))
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
        if left == "foreign" and got:
            wrong.append(f"seed {seed}: a lock of another machine was taken while it was fresh")
        if left in ("nothing", "dead") and not got:
            wrong.append(f"seed {seed}, {left}: nobody got the lock")
    return {"done": {"starts": starts, "held": held}, "wrong": wrong}
