"""MLflow: a tracking folder (`mlruns`), a SQLite database, or an exported CSV. Needs no mlflow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from opmix.errors import DataError
from opmix.trackers.runs import TrackedRun, as_number
from opmix.trackers.tables import read_csv_runs

_DATABASES = (".db", ".sqlite", ".sqlite3")
_FINISHED = 3  # mlflow.entities.RunStatus


def read_mlflow(path: Path) -> tuple[TrackedRun, ...]:
    """Runs of `mlruns` (or one experiment's folder in it), of a database file, or of a CSV.

    Raises:
        DataError: Nothing there that can be read.
    """
    if path.is_dir():
        runs = tuple(_run(meta) for meta in sorted(path.rglob("meta.yaml")) if (meta.parent / "metrics").is_dir())
        if runs:
            return tuple(run for run in runs if run is not None)
        if (path / "mlflow.db").is_file():
            return _database(path / "mlflow.db")
        raise DataError(
            f"{path}: no run below it; expected an mlruns folder with EXPERIMENT/RUN/meta.yaml, or mlflow.db"
        )
    if path.suffix in _DATABASES:
        return _database(path)
    return read_csv_runs(path)


def _run(meta: Path) -> TrackedRun | None:
    """A run's folder; None where it was deleted or is none."""
    import yaml

    try:
        facts = yaml.safe_load(meta.read_text(encoding="utf-8"))
        # Logged models have the same layout and no run id of their own.
        if facts.get("lifecycle_stage") == "deleted" or not {"run_id", "run_uuid"} & set(facts):
            return None
        settings = {name: as_number(text.strip()) for name, text in _files(meta.parent / "params")}
        metrics = {name: _last(text) for name, text in _files(meta.parent / "metrics")}
    except (OSError, ValueError, AttributeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{meta.parent}: {error}; expected a run's folder as MLflow writes it") from error
    return TrackedRun(
        name=str(facts.get("run_id") or meta.parent.name),
        settings={name: value for name, value in settings.items() if value is not None},
        metrics={name: value for name, value in metrics.items() if value is not None},
        finished=facts.get("status", _FINISHED) in (_FINISHED, "FINISHED"),
    )


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Names (which may hold `/`) and contents."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file.read_text(encoding="utf-8")


def _last(text: str) -> float | None:
    """The value at the greatest step of lines `timestamp value step`."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    latest = max(lines, key=lambda parts: (int(parts[2]) if len(parts) > 2 else 0, int(parts[0])))
    return float(latest[1])


def _database(path: Path) -> tuple[TrackedRun, ...]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected MLflow's database")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            runs = database.execute(
                "SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time, run_uuid"
            ).fetchall()
            params = database.execute("SELECT run_uuid, key, value FROM params").fetchall()
            metrics = database.execute("SELECT run_uuid, key, value, is_nan FROM latest_metrics").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path}: {error}; expected MLflow's database with runs, params and latest_metrics") from error
    settings: dict[str, dict[str, float]] = {run: {} for run, _ in runs}
    logged: dict[str, dict[str, float]] = {run: {} for run, _ in runs}
    for run, key, value in params:
        if run in settings and (number := as_number(value)) is not None:
            settings[run][key] = number
    for run, key, value, is_nan in metrics:
        if run in logged:
            logged[run][key] = float("nan") if is_nan else float(value)
    return tuple(
        TrackedRun(name=run, settings=settings[run], metrics=logged[run], finished=status == "FINISHED")
        for run, status in runs
    )
