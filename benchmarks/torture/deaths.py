"""A life that dies again and again, each time just before one of its own next changes on disk: then the same bytes.

At every second death the power fails too: what this process wrote and did not sync is empty afterwards.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashes import LEFT, _last
from disk import on_change
from kill_and_resume import differing
from world import World, in_child

DIED = 77
AT_MOST = 200
"""Changes on disk that a process makes before it dies; a life has some 600, and going on with it begins with some dozens."""
Files = dict[str, tuple[int, int, int]]


def dying(world: World, changes: int, synced: Path) -> Callable[[], None]:
    """A life of so many changes on disk; which contents were synced is told in a file."""

    def live() -> None:
        left = [changes]
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            with synced.open("a") as file:
                file.write(f"{_version(os.fstat(descriptor))}\n")

        def act(event: str, path: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(DIED)

        os.fsync = fsync
        on_change(world.root, act)
        world.live()

    return live


def _version(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def files_of(root: Path) -> Files:
    """Versions of all files."""
    return {str(path): _version(path.stat()) for path in root.rglob("*") if path.is_file()}


def lose_power(root: Path, before: Files, synced: Path) -> int:
    """Empty what is new since `before` and was not synced; returns how many files that were."""
    kept = {str(version) for version in before.values()}
    kept |= set(synced.read_text().splitlines()) if synced.exists() else set()
    lost = [path for path, version in files_of(root).items() if str(version) not in kept]
    for path in lost:
        Path(path).write_bytes(b"")
    return len(lost)


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Lives until there were `most` deaths (over all processes) or time is up."""
    deadline, rng = time.monotonic() + seconds, random.Random(1000 * seed + part[0])
    world, whole, synced = World(folder / "world"), folder / "whole", folder / "synced"
    world.warm()
    world.create()
    if (unbroken := in_child(world.live, seconds=900)).code:
        raise SystemExit(f"the unbroken life failed: {unbroken.said}")
    world.run.rename(whole)
    done = {"deaths": 0, "with loss of power": 0, "files emptied": 0, "lives": 0}
    wrong: list[str] = []
    while done["deaths"] < most / part[1] and time.monotonic() < deadline:
        world.create()
        done["lives"] += 1
        told = f"seed {seed}, process {part[0]}, life {done['lives']}"
        while True:
            before = files_of(world.root)
            synced.unlink(missing_ok=True)
            late = time.monotonic() > deadline
            ending = in_child(world.live if late else dying(world, rng.randint(1, AT_MOST), synced))
            if ending.code != DIED:
                break
            done["deaths"] += 1
            if rng.random() < 0.5:
                done["with loss of power"] += 1
                done["files emptied"] += lose_power(world.root, before, synced)
        if ending.code:
            wrong.append(f"{told}: did not go on ({ending.code}): {_last(ending)}")
            continue
        differ, compared = differing(whole, world.run)
        if differ or not compared:
            wrong.append(f"{told}: other bytes: {', '.join(differ[:3])}")
        left = [str(p.relative_to(world.root)) for pattern in LEFT for p in world.root.rglob(pattern)]
        if left:
            wrong.append(f"{told}: left behind: {', '.join(left[:3])}")
    return {"done": done, "wrong": wrong}
