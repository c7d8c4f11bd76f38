"""Weights & Biases: exported runs (CSV, JSON), and the local folders of runs that were online."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opmix.errors import DataError
from opmix.trackers.runs import TrackedRun, numbers
from opmix.trackers.tables import read_csv_runs

_SUMMARY = "wandb-summary.json"
_SUMMARIES = ("summary", "summary_metrics", "summaryMetrics")


def read_wandb(path: Path) -> tuple[TrackedRun, ...]:
    """Runs of a CSV or JSON export, or of a `wandb` folder.

    JSON is a list of runs (or one a line), each with `config` and `summary`, or flat.

    Raises:
        DataError: Nothing there that can be read; offline runs that were never synchronised.
    """
    if path.is_dir():
        return _folders(path)
    if path.suffix == ".csv":
        return read_csv_runs(path)
    text = _text(path)
    try:
        entries = [json.loads(line) for line in text.splitlines() if line.strip()] if _lines(path) else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); expected a list of runs, or a .csv file") from error
    if isinstance(entries, Mapping):
        entries = entries.get("runs", [entries])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise DataError(f"{path}: expected a list of runs, each an object with `config` and `summary`")
    return tuple(_run(entry, number) for number, entry in enumerate(entries, 1))


def _lines(path: Path) -> bool:
    return path.suffix in (".jsonl", ".ndjson")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a CSV or JSON export, or a wandb folder") from error


def _run(entry: Mapping[str, Any], number: int) -> TrackedRun:
    summary = next((entry[key] for key in _SUMMARIES if key in entry), None)
    if summary is None and "config" not in entry:
        settings, metrics = {}, numbers(entry)
    else:
        settings, metrics = numbers(_object(entry.get("config"))), numbers(_object(summary))
    state = entry.get("state")
    return TrackedRun(
        name=str(entry.get("id") or entry.get("name") or f"run {number}"),
        settings=settings,
        metrics=metrics,
        finished=state in (None, "finished"),
    )


def _object(value: Any) -> Mapping[str, Any]:
    """W&B's API gives some of these as JSON inside a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _folders(path: Path) -> tuple[TrackedRun, ...]:
    summaries = sorted(path.rglob(f"files/{_SUMMARY}"))
    # `latest-run` is a link to one of the others.
    summaries = [s for s in summaries if not any(parent.is_symlink() for parent in s.parents)] or summaries
    if not summaries:
        offline = sorted(path.rglob("*.wandb"))
        remedy = (
            f"{len(offline)} offline run(s) keep theirs in a binary file; `wandb sync` them and export the project's "
            "table"
            if offline
            else "expected run-*/files/ folders, or give a CSV or JSON export"
        )
        raise DataError(f"{path}: no {_SUMMARY} below it; {remedy}")
    return tuple(_folder(summary) for summary in summaries)


def _folder(summary: Path) -> TrackedRun:
    import yaml

    config = summary.parent / "config.yaml"
    try:
        metrics = json.loads(_text(summary))
        settings = yaml.safe_load(_text(config)) if config.is_file() else {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(
            f"{summary.parent}: {error}; expected {_SUMMARY} and config.yaml as wandb writes them"
        ) from error
    return TrackedRun(
        name=summary.parent.parent.name, settings=numbers(_object(settings)), metrics=numbers(_object(metrics))
    )
