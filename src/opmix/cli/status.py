"""`opmix status`: how far a run is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opmix.cli.options import AsJson
from opmix.errors import StoreError
from opmix.runs.trace import WAITING, WORK, Spent

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from opmix.lifecycle.run_status import RunStatus


def status(
    folder: Annotated[Path, typer.Argument(help="Run folder of any verb.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Against this lifecycle.yaml: what would be stale, and why.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the run is finished.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="File to write: what the time went into, for Perfetto or chrome://tracing."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What of a run is done, stale (and why) or left; tokens, FLOPs and time spent, and an estimate of the rest."""
    from opmix.progress.display import terminal

    look = _looker(folder, config)
    found = look()
    if trace is not None:
        _write_trace(folder, trace)
    if as_json:
        sys.stdout.write(json.dumps(_status_json(found), indent=2) + "\n")
        return
    console = terminal()
    if not watch:
        console.print(_status_view(found))
        return
    if not console.is_terminal:
        for line in _told_as_lines(look, found):
            console.print(line, soft_wrap=True)
        return
    from rich.live import Live

    with Live(_status_view(found), console=console, refresh_per_second=2) as live:
        while found.holder is not None:
            time.sleep(1)
            found = look()
            live.update(_status_view(found))


def _write_trace(folder: Path, file: Path) -> None:
    from opmix.runs.trace import FILE, read_spans, write_chrome

    spans = read_spans(folder)
    if not spans:
        raise StoreError(f"{folder / FILE}: no spans of work; expected those that `opmix run` or `opmix search` writes")
    write_chrome(spans, file)
    sys.stderr.write(f"{file}: {len(spans)} spans; open it in https://ui.perfetto.dev\n")


def _told_as_lines(look: Callable[[], RunStatus], found: RunStatus, pause: float = 1.0) -> Iterator[Any]:
    """For a file or pipe: the state, then a line whenever steps were done or another one runs, and the state at the end."""
    yield _status_view(found)
    before = None
    while found.holder is not None:
        done = sum(step.state == "done" for step in found.steps)
        running = tuple(step.name for step in found.steps if step.state == "running")
        if before not in (None, (done, running)):
            yield f"{done} of {len(found.steps)} steps done" + _running(running)
        before = (done, running)
        time.sleep(pause)
        found = look()
    if before is not None:
        yield _status_view(found)


def _looker(folder: Path, config: Path | None) -> Callable[[], RunStatus]:
    """Reads the state of a life or of a comparison, whichever the folder holds; of a run on a URL as it is there by then."""
    from opmix.runs.run_folder import refresh

    look = _local_looker(folder, config)

    def fresh() -> RunStatus:
        refresh(folder)
        return look()

    return fresh


def _local_looker(folder: Path, config: Path | None) -> Callable[[], RunStatus]:
    from functools import partial

    from opmix.lifecycle.run_status import DATA, decision_status

    if not (folder / DATA).is_file() and config is None:
        return partial(decision_status, folder)
    from opmix.lifecycle.status import recorded_config, run_status

    if "methods" in recorded_config(folder):
        from opmix.comparison.config import load_compare
        from opmix.comparison.status import compare_status

        return partial(compare_status, folder, None if config is None else load_compare(config))
    from opmix.lifecycle.loading import load_lifecycle

    return partial(run_status, folder, None if config is None else load_lifecycle(config))


def _status_view(found: RunStatus) -> Group:
    from rich.console import Group
    from rich.text import Text

    from opmix.progress.display import table

    shown = table("step", "state", "why, or when", title=str(found.folder))
    colours = {"done": "green", "stale": "yellow", "running": "bold cyan", "left": "dim"}
    for step in found.steps:
        shown.add_row(
            step.name, Text(step.state, style=colours[step.state]), "; ".join(step.why[:3]) or (step.finished or "")
        )
    return Group(shown, *_account(found))


def _account(found: RunStatus) -> list[Text]:
    from rich.text import Text

    spent, left = found.spent, found.flops_left
    lines = [
        Text(
            f"{purpose}: {spent.tokens[purpose]:,.0f} tokens, {flops:.3g} FLOPs, {_time(spent.seconds.get(purpose, 0))}"
        )
        for purpose, flops in spent.flops.items()
    ]
    if found.spent_on.total:
        lines.append(Text(_waiting(found.spent_on)))
    peak = max((step.peak_memory or 0 for step in found.steps), default=0)
    if peak:
        lines.append(Text(f"peak memory {peak / 1e9:.2f} GB"))
    waiting = sum(step.state != "done" for step in found.steps)
    if not waiting:
        lines.append(Text("finished"))
    else:
        known = f", {sum(left.values()):.3g} FLOPs" if left else ""
        seconds = found.seconds_left
        lines.append(
            Text(f"left: {waiting} steps{known}" + ("" if seconds is None or not left else f", about {_time(seconds)}"))
        )
    if found.changed:
        lines.append(Text(f"changed on disk since they were read: {', '.join(found.changed)}", style="yellow"))
    if found.holder is not None:
        doing = f": {_doing(found.task)}" if found.task and not found.tasks else ""
        lines.append(Text(f"process {found.holder} is working on it{doing}"))
        lines += [Text(f"{name}: {_doing(said)}") for name, said in found.tasks.items()]
    return lines


def _running(steps: Sequence[str]) -> str:
    return f"; {', '.join(steps)} {'is' if len(steps) == 1 else 'are'} running" if steps else ""


def _doing(now: Mapping[str, Any]) -> str:
    return f"{now['task']} {now['done']}/{now['total'] or '?'}"


def _waiting(spent: Spent) -> str:
    """The share of the time in which nothing was trained or evaluated, and what took most of it."""
    rest = [(kind, s / spent.total) for kind, s in spent.seconds.items() if kind not in WORK]
    parts = ", ".join(f"{WAITING.get(kind, kind)} {share:.1%}" for kind, share in rest if share >= 0.005)
    return f"waiting {spent.waiting:.1%} of {_time(spent.total)}" + (f": {parts}" if parts else "")


def _status_json(found: RunStatus) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "spent": found.spent.json(),
        "flops_left": found.flops_left,
        "seconds_left": found.seconds_left,
        "waiting": found.spent_on.waiting if found.spent_on.total else None,
        "seconds_by_kind": dict(found.spent_on.seconds),
        "holder": found.holder,
        "task": found.task,
        "tasks": found.tasks,
        "changed": found.changed,
        "steps": [
            {"name": s.name, "kind": s.kind, "state": s.state, "why": s.why, "peak_memory": s.peak_memory}
            for s in found.steps
        ],
    }


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else (f"{minutes} min {rest} s" if minutes else f"{rest} s")
    )
