"""Which runs lie below a folder, and what each says of itself in a line; damaged ones are listed too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from opmix.errors import OpMixError
from opmix.lifecycle.run_status import decision_status
from opmix.results.asked import AskedFile
from opmix.results.comparison import NAME as COMPARE
from opmix.results.comparison import CompareFile
from opmix.results.comparison_verdict import comparison_verdict
from opmix.results.files import read_object
from opmix.results.life import NAME as LIFE
from opmix.results.life import LifeFile
from opmix.results.manifest import Manifest
from opmix.results.mixture import NAME, MixtureFile

_SIGNS = ("manifest.json", NAME, LIFE, COMPARE)
_NOT_ENTERED = {"probes", "checkpoints", "model", "steps", "tables", "tasks", "logs", "tokenizer", "trackers"}
_MOST = 2_000
"""Runs listed; a folder with more is not one that somebody reads."""
State = Literal["finished", "running", "stopped", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run, as a list shows it."""

    path: str
    """From the folder that was looked through; `.`: that folder."""
    kind: str
    """The verb: search, fit, run, compare, demo, ...; empty: not known."""
    state: State
    told: str = ""
    """What it found, how far it is, or what is damaged."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """Recommended token shares; of a life those it ended with."""
    action: str = ""
    """Of a decision: move or keep."""
    gain: float | None = None
    """Measured where it was, else foretold, nats."""
    flops: float | None = None
    """Of the search."""
    updated: str = ""
    """When something was written last, UTC."""
    report: bool = False

    def json(self) -> dict[str, Any]:
        """For `opmix ls --json` and the page."""
        return asdict(self)


def find_runs(root: Path) -> list[RunLine]:
    """Every run below a folder, the one written last first. Searches inside a life belong to the life.

    Raises:
        OpMixError: Not a folder.
    """
    if not root.is_dir():
        raise OpMixError(f"{root}: no such folder; expected one with run folders in it, such as runs")
    found = [read_run(root, folder) for folder in _folders(root)]
    return sorted(found, key=lambda line: line.updated, reverse=True)


def _folders(root: Path) -> Iterator[Path]:
    count = 0
    for place, inside, files in os.walk(root):
        inside[:] = sorted(n for n in inside if n not in _NOT_ENTERED and not n.startswith("."))
        folder = Path(place)
        if _is_run(folder, files, inside):
            yield folder
            count += 1
            inside[:] = [] if folder != root else inside
        if count >= _MOST:
            return


def _is_run(folder: Path, files: list[str], inside: list[str]) -> bool:
    """Whether a verb wrote the folder: a stage of a life holds a `mixture.json` that is no decision."""
    if "lock" in files and (folder / "steps").is_dir():
        return True
    return any(sign in files for sign in _SIGNS[:1] + _SIGNS[2:]) or (NAME in files and (folder / "tables").is_dir())


def read_run(root: Path, folder: Path) -> RunLine:
    """What one folder says."""
    path = folder.relative_to(root).as_posix()
    kind = ""
    try:
        holder = decision_status(folder).holder
        manifest = Manifest.find(folder)
        kind = (manifest.command if manifest is not None else None) or ""
        told = _told(folder)
        kind = kind or str(told.pop("kind", ""))
        told.pop("kind", None)
        finished = bool(told)
        state: State = "running" if holder is not None else "finished" if finished else "stopped"
        if not finished or holder is not None:
            told |= {"told": _progress(folder)}
        return RunLine(path=path, kind=kind, state=state, updated=_updated(folder), report=_has_report(folder), **told)
    except (OpMixError, OSError) as error:
        said = str(error).partition("\n")[0]
        return RunLine(path=path, kind=kind, state="damaged", told=said, updated=_updated(folder))


def _has_report(folder: Path) -> bool:
    return (folder / "report.html").is_file()


def _told(folder: Path) -> dict[str, Any]:
    """What a finished run found; empty: it is not finished."""
    if (folder / LIFE).is_file():
        life = LifeFile.read(folder)
        last = life.stages[-1]
        loss = last.mean_test_loss.mean
        return {
            "kind": "run",
            "told": f"{len(life.stages)} stages, {len(life.seeds)} seeds; mean test loss {loss:.4f}",
            "mixture": {d: x.mean for d, x in last.mixture.items()},
        }
    if (folder / COMPARE).is_file():
        return {"kind": "compare", "told": comparison_verdict(CompareFile.read(folder))}
    if (folder / NAME).is_file():
        found = MixtureFile.read(folder)
        decision = found.decision
        return {
            "kind": found.kind,
            "told": "" if decision is None else decision.reason,
            "mixture": dict(found.mixture),
            "action": "" if decision is None else decision.action,
            "gain": None if decision is None else decision.known_gain[0],
            "flops": None if found.cost is None else found.cost.total("flops"),
        }
    return {}


def _progress(folder: Path) -> str:
    """How far an unfinished run is."""
    asked = AskedFile.find(folder)
    if asked is not None:
        return f"{sum(run.told for run in asked.runs)} of {len(asked.runs)} runs told"
    steps = sum(1 for _ in (folder / "steps").glob("**/*.json"))
    if (folder / "progress.json").is_file():
        now = read_object(folder / "progress.json")
        return f"{now.get('task', '')}: {now.get('done', '?')}/{now.get('total') or '?'}; {steps} steps done"
    return f"{steps} steps done"


def _updated(folder: Path) -> str:
    """When a file of the folder, or a record of a step, was written last."""
    times = [p.stat().st_mtime for pattern in ("*", "steps/*") for p in folder.glob(pattern) if p.is_file()]
    return datetime.fromtimestamp(max(times, default=0.0), UTC).isoformat(timespec="seconds")
