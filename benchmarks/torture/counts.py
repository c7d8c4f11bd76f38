"""What torture did, kept as JSON, and the table in docs/reliability.md that is made of it."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
KEPT = "benchmarks/results/torture.json"
PAGE = HERE / "docs" / "reliability.md"
BEGIN, END = "<!-- torture: python benchmarks/torture --table -->\n", "<!-- end of torture -->\n"


def add(file: Path, part: str, run: Mapping[str, Any], *, fresh: bool) -> None:
    """Keep what a part did, beside what it did before with other seeds or at other commits."""
    content = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    if any(isinstance(runs, dict) for runs in content["parts"].values()):
        raise SystemExit(f"{file}: an older torture wrote it; use another --out, or remove it")
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "commit": commit()}
    before = [] if fresh else [r for r in content["parts"].get(part, []) if not _same(r, {**run, **facts})]
    content["parts"][part] = [*before, {**facts, **run}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether one run would repeat the other: of the same seed."""
    return bool(a["seed"] == b["seed"])


def commit() -> str:
    """Of this checkout; with a + where files differ from it."""
    told = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def table(content: Mapping[str, Any]) -> str:
    """Of every part: what was done in all its runs, and how."""
    lines = ["| part | done | wrong | seconds x processes | seeds | commits |", "|---|---|---|---|---|---|"]
    for part, runs in content["parts"].items():
        done: dict[str, Any] = {}
        for kind, count in (item for run in runs for item in run["done"].items()):
            done[kind] = done.get(kind, 0) + count
        spent = "+".join(f"{run['seconds']}x{run['processes']}" for run in runs)
        counted = ", ".join(f"{count:,} {kind}" for kind, count in done.items())
        wrong = sum(len(run["wrong"]) for run in runs)
        seeds, commits = (_each(runs, key) for key in ("seed", "commit"))
        lines.append(f"| {part} | {counted} | {wrong} | {spent} | {seeds} | {commits} |")
    every = [run for runs in content["parts"].values() for run in runs]
    told = f"{_each(every, 'machine')}; {_each(every, 'date')}."
    return "\n".join(lines) + f"\n\n{told}\n"


def _each(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(run[key]) for run in runs))


def write_table() -> int:
    """Put the table into its place on the page."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN!r} and {END!r}")
    made = table(json.loads((HERE / KEPT).read_text()))
    PAGE.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")
    return 0
