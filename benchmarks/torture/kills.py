"""A small life, killed at random moments again and again until it is done: the same bytes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from crashes import _last
from kill_and_resume import differing
from world import World, in_child

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def lived_in_the_last_net(world: World) -> None:
    """As the command line does: SIGTERM and SIGINT end it cleanly."""
    from opmix.cli.last_net import last_net

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with last_net(debug=False):
        world.live()


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Kill lives until there were `most` kills (over all processes) or time is up."""
    deadline, rng = time.monotonic() + seconds, random.Random(1000 * seed + part[0])
    world, whole = World(folder / "world"), folder / "whole"
    world.warm()
    started = time.monotonic()
    world.create()
    if (unbroken := in_child(world.live, seconds=900)).code:
        raise SystemExit(f"the unbroken life failed: {unbroken.said}")
    world.run.rename(whole)
    length = min(time.monotonic() - started, 20.0)
    killed, lives = dict.fromkeys(("SIGKILL", "SIGTERM", "SIGINT"), 0), 0
    wrong: list[str] = []
    while sum(killed.values()) < most / part[1] and time.monotonic() < deadline:
        world.create()
        lives += 1
        for _ in range(200):
            how = rng.choice(SIGNALS)
            ending = in_child(
                lambda: lived_in_the_last_net(world), kill_after=rng.uniform(0, length / 4), kill_with=how
            )
            if ending.code == 0:
                break
            killed[how.name] += 1
            if ending.code not in (-signal.SIGKILL, -how, 143, 130):
                wrong.append(f"seed {seed}: {how.name} ended with {ending.code}: {_last(ending)}")
        else:
            ending = in_child(world.live)
        differ, compared = differing(whole, world.run)
        if differ or not compared:
            wrong.append(f"seed {seed}, life {lives}: other bytes: {', '.join(differ[:3])}")
        left = [p.name for p in world.root.rglob(".writing-*")]
        if left:
            wrong.append(f"seed {seed}, life {lives}: left behind: {left[:3]}")
    return {"done": {**killed, "lives": lives}, "wrong": wrong}
