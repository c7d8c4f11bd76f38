"""What was found, into experiment trackers: every probe and look, the mixture with its interval, decision, cost and summary.

Through the trackers of accelerate, which names its own (tensorboard, wandb, mlflow, trackio, ...); or through any function that takes
numbers by name, such as `wandb.log`. Loads no torch until a tracker is started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from opmix.errors import ConfigError
from opmix.mixing.table import ProxyTable
from opmix.results.mixture import MixtureFile
from opmix.settings.loading import nearest
from opmix.trackers.told import Row, Told, of_decision

Log = Callable[[Row], Any]
"""Takes numbers by name, as `wandb.log`, `trackio.log` and `mlflow.log_metrics` do."""
PROJECT = "opmix"


class Tracker(Protocol):
    """What accelerate's trackers have in common."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...  # noqa: D102
    def finish(self) -> None: ...  # noqa: D102


def check_trackers(names: str | Sequence[str] | None, where: str = "report_to", *, strict: bool = True) -> list[str]:
    """Names of trackers, `all` and `none` resolved; not `strict`: those that only transformers may know are passed over.

    Raises:
        ConfigError: One that accelerate does not know or that is not installed; nothing was started.
    """
    wanted = [names] if isinstance(names, str) else list(names or ())
    if not wanted or "none" in wanted:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    here = [str(name) for name in get_available_trackers()]
    if "all" in wanted:
        return here
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS and not strict:
            continue
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            hint = nearest(name, list(LOGGER_TYPE_TO_CLASS))
            raise ConfigError(f"{where}: {name!r} is no tracker that a decision can be logged to{hint}; one of {known}")
        if name not in here:
            raise ConfigError(f"{where}: {name!r} is not installed; pip install {name}, or leave it out")
    return [name for name in wanted if name in here]


def log_decision(
    found: MixtureFile,
    table: ProxyTable | None,
    to: str | Sequence[str] | Log,
    *,
    project: str = PROJECT,
    folder: str | Path = "logs",
    report: Path | None = None,
) -> None:
    """Log a decision, and what it was decided on, as a run of its own; see `log_run`."""
    log_run(of_decision(found, table), to, project=project, folder=folder, report=report)


def log_run(
    told: Told,
    to: str | Sequence[str] | Log,
    *,
    project: str = PROJECT,
    folder: str | Path = "logs",
    report: Path | None = None,
) -> None:
    """Log as a run of its own; a run of somebody's, or of a life's training, that is open meanwhile stays open.

    Args:
        told: Numbers, summary and settings.
        to: Names of trackers, or a function that takes numbers by name.
        project: Of the trackers that have projects.
        folder: Where trackers that write files write them.
        report: HTML page, shown or attached where it is there and the tracker takes pages (wandb, mlflow).

    Raises:
        ConfigError: A tracker that is not known or not installed.
    """
    if callable(to):
        for row in told.rows:
            to(dict(row))
        return
    for name in check_trackers(to, "to"):
        # trackio ends the run that it finds in its context variables; in a context of its own it finds none.
        Context().run(_logged, name, told, project, Path(folder), report)


def _start_with(name: str, told: Told) -> dict[str, Any]:
    """Arguments of a tracker's own start; where it keeps a text about a run, that is the summary."""
    if name == "wandb":  # the configuration too: accelerate sets that of the process' run, which this is not
        return {"reinit": "create_new", "config": dict(told.settings), "notes": told.summary}
    if name == "mlflow":
        return {"nested_run": True, "description": told.summary}
    return {}


def _logged(name: str, told: Told, project: str, folder: Path, report: Path | None) -> None:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it whether this is the first process
    kind, own = LOGGER_TYPE_TO_CLASS[name], _start_with(name, told)
    page = report if report is not None and report.is_file() else None
    tracker: Any = kind(project, str(folder), **own) if kind.requires_logging_directory else kind(project, **own)
    tracker.start()
    try:
        if name != "wandb":
            tracker.store_init_configuration(dict(told.settings))
        for step, row in enumerate(told.rows):
            tracker.log(dict(row), step=step)
        if name == "tensorboard":
            tracker.log({"summary": told.summary}, step=0)
        elif name == "wandb" and page is not None:
            # In the run itself: a file that is saved is a link, and the folder of a search may be a passing one.
            tracker.log({"report": import_module("wandb").Html(page.read_text(encoding="utf-8"))})
        elif name == "mlflow" and page is not None:
            import_module("mlflow").log_artifact(str(page))
    finally:
        tracker.finish()
