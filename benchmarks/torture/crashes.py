"""Death at every change on disk of a small life, loss of what was not synced, and every write refused: then the same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk import Blobs, State, on_change
from kill_and_resume import differing
from world import Ending, World, in_child

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS)
LEFT = ("lock", ".writing-*", "*.tmp")


@dataclass
class Recorded:
    """An unbroken life, and the world just before each of its changes on disk."""

    states: list[State]
    events: list[str]
    synced: frozenset[str]
    """Contents that were on disk for sure."""


def record(world: World, blobs: Blobs, notes: Path, whole: Path) -> Recorded:
    """Live the life once, watching; the finished run is kept in `whole`."""
    world.create()
    before = blobs.state(world.root)

    def watched() -> None:
        states: dict[State, str] = {}
        synced: set[str] = set()
        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_file():
                synced.add(blobs.keep(str(path)))

        os.fsync = fsync
        on_change(world.root, lambda event, path: states.setdefault(blobs.state(world.root), f"{event} {path}"))
        world.live()
        states.setdefault(blobs.state(world.root), "end")
        notes.write_text(json.dumps({"states": list(states.items()), "synced": sorted(synced)}))

    ending = in_child(watched, seconds=900)
    if ending.code:
        raise SystemExit(f"the unbroken life failed: {ending.said}")
    os.rename(world.run, whole)  # noqa: PTH104
    found = json.loads(notes.read_text())
    states = [tuple((n, c) for n, c in state) for state, _ in found["states"]]
    events = [event.replace(str(world.root), "") for _, event in found["states"]]
    return Recorded(states, events, frozenset(found["synced"]) | {c for _, c in before if c is not None})


def refuse(root: Path, number: int, code: int) -> Callable[[], None]:
    """Arms the process: its `number`-th change below `root` fails."""

    def arm() -> None:
        left = [number]

        def act(event: str, path: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code, os.strerror(code), path)

        on_change(root, act)

    return arm


@dataclass(frozen=True)
class Trial:
    """What is done to the world before it is lived on in."""

    kind: str
    state: int
    code: int = 0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.state} {errno.errorcode.get(self.code, self.code)} {self.number}"


def trials(recorded: Recorded, most: int, rng: random.Random) -> list[Trial]:
    """At most so many deaths and losses of power, and a quarter as many refused and short writes, spread over the life."""
    states = range(len(recorded.states))
    chosen = rng.sample(states, min(most, len(states)))
    hurt = chosen[: -(-len(chosen) // 4)]
    refused = [Trial("refused", s, rng.choice(ERRORS), rng.randint(1, 12)) for s in hurt]
    short = [Trial("short", s, 0, rng.choice((0, 100, 1000, 4000, 20_000))) for s in hurt]
    return [*(Trial("crash", s) for s in chosen), *(Trial("power", s) for s in chosen), *refused, *short]


def attempt(trial: Trial, recorded: Recorded, blobs: Blobs, world: World, whole: Path) -> list[str]:
    """Everything that is wrong about one trial."""
    state = recorded.states[trial.state]
    lost = frozenset(c for _, c in state if c is not None) - recorded.synced if trial.kind == "power" else frozenset()
    blobs.restore(state, world.root, lost=lost)
    wrong: list[str] = []
    if trial.kind in ("refused", "short"):
        hurt = _hurt(trial, world)
        if not hurt.clean:
            wrong.append(f"ended with {hurt.code}: {_last(hurt)}")
        elif hurt.code and len(hurt.said.strip().splitlines()) > 3:
            wrong.append(f"said more than an error: {_last(hurt)}")
    ending = in_child(world.live)
    if ending.code:
        return [*wrong, f"did not go on ({ending.code}): {_last(ending)}"]
    differ, compared = differing(whole, world.run)
    if differ or not compared:
        wrong.append(f"other bytes: {', '.join(differ[:3])}")
    left = [str(p.relative_to(world.root)) for pattern in LEFT for p in world.root.rglob(pattern)]
    return wrong + ([f"left behind: {', '.join(left[:3])}"] if left else [])


def _hurt(trial: Trial, world: World) -> Ending:
    if trial.kind == "short":
        return in_child(world.live, largest_file=trial.number)

    def armed() -> None:
        refuse(world.root, trial.number, trial.code)()
        world.live()

    return in_child(armed)


def _last(ending: Ending) -> str:
    return " | ".join(ending.said.strip().splitlines()[-3:])[-500:]


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Run the trials of one of several processes, until time is up.

    Args:
        folder: Of this process.
        seed: Of the choice.
        most: Trials a kind, over all processes.
        part: Which of how many.
        seconds: After which no further trial is begun.
    """
    deadline = time.monotonic() + seconds
    world, blobs = World(folder / "world"), Blobs(folder / "blobs")
    world.warm()
    recorded = record(world, blobs, folder / "states.json", folder / "whole")
    every = trials(recorded, most, random.Random(seed))[part[0] :: part[1]]
    random.Random(seed).shuffle(every)
    done: Counter[str] = Counter()
    wrong: list[str] = []
    for trial in every:
        if time.monotonic() > deadline:
            break
        done[trial.kind] += 1
        found = attempt(trial, recorded, blobs, world, folder / "whole")
        wrong += [f"{trial} ({recorded.events[trial.state][:120]}): {text}" for text in found]
    return {"done": {"points of a life": len(recorded.states) if part[0] == 0 else 0, **done}, "wrong": wrong}
