"""Runs in a CSV that a tracker's page or command line exported."""

from __future__ import annotations

import ast
import csv
from collections.abc import Mapping
from pathlib import Path

from opmix.errors import DataError
from opmix.trackers.runs import TrackedRun, as_number, numbers

_IDS = ("run_id", "run id", "id", "run_name", "name", "run")
_STATES = ("state", "status")
_FINISHED = ("finished", "")
_NESTED = {"config": "settings", "summary": "metrics"}


def read_csv_runs(path: Path) -> tuple[TrackedRun, ...]:
    """Runs of a CSV, one row each.

    Columns may be bare names (a page's export), `params.X` and `metrics.X` (`mlflow experiments csv`), or `config`
    and `summary` that hold Python mappings (W&B's example of an export through its API).

    Raises:
        DataError: The file cannot be read or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a CSV file with a header and one row a run") from error
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and one row a run")
    return tuple(_run(row, number, path) for number, row in enumerate(rows, 2))


def _run(row: Mapping[str, str | None], line: int, path: Path) -> TrackedRun:
    lowered = {name.lower(): value or "" for name, value in row.items() if name}
    found: dict[str, dict[str, float]] = {"settings": {}, "metrics": {}}
    for name, text in row.items():
        kind = _NESTED.get(name or "")
        if kind is not None and (text or "").lstrip().startswith("{"):
            found[kind] |= numbers(_mapping(text or "", f"{path}:{line}: column {name!r}"))
        elif name and (value := as_number(text)) is not None:
            if name.startswith("params."):
                found["settings"][name.removeprefix("params.")] = value
            else:
                found["metrics"][name.removeprefix("metrics.")] = value
    state = next((lowered[key] for key in _STATES if key in lowered), "")
    return TrackedRun(
        name=next((lowered[key] for key in _IDS if lowered.get(key)), f"row {line}"),
        settings=found["settings"],
        metrics=found["metrics"],
        finished=state.lower() in _FINISHED,
    )


def _mapping(text: str, where: str) -> Mapping[str, object]:
    try:
        # `nan` and `inf` are how Python prints those numbers, and no literals.
        content = ast.literal_eval(text.replace(": nan", ": 'nan'").replace(": inf", ": 'inf'"))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: {error}; expected a Python mapping; export JSON instead") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: a {type(content).__name__}; expected a mapping; export JSON instead")
    return content
