"""A decision into experiment trackers: every probe and look, the mixture with its interval, decision, cost and summary.

Through the trackers of accelerate, which names its own (tensorboard, wandb, mlflow, trackio, ...); or through any function that takes
numbers by name, such as `wandb.log`. Loads no torch until a tracker is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.table import ProxyTable
from opmix.results.mixture import MixtureFile
from opmix.settings.loading import nearest

Log = Callable[[dict[str, float]], Any]
"""Takes numbers by name, as `wandb.log`, `trackio.log` and `mlflow.log_metrics` do."""
PROJECT = "opmix"
_OWN_RUN: dict[str, dict[str, Any]] = {"wandb": {"reinit": "create_new"}, "mlflow": {"nested_run": True}}
"""So that a run of somebody's, or of a life's training, that is open meanwhile stays open."""


class Tracker(Protocol):
    """What accelerate's trackers have in common."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...  # noqa: D102
    def finish(self) -> None: ...  # noqa: D102


def decision_rows(found: MixtureFile, table: ProxyTable | None) -> list[dict[str, float]]:
    """Numbers by name, a step each: the points in the table's order, then what was decided.

    `loss/SET` and `share/DOMAIN` of a point; of the decision `mixture/DOMAIN`, `optimum/DOMAIN`, `interval_low/DOMAIN`,
    `interval_high/DOMAIN`, `decision/...` and `cost/...`. Losses and gains in nats per token.
    """
    rows: list[dict[str, float]] = []
    for i in range(0 if table is None else len(table.points)):
        assert table is not None
        told = {f"loss/{m}": x for m, x in zip(table.metrics, table.losses[i], strict=True)}
        rows.append({**told, **{f"share/{d}": x for d, x in zip(table.domains, table.mixtures[i], strict=True)}})
    last: dict[str, float | None] = {f"mixture/{d}": x for d, x in found.mixture.items()}
    last |= {f"optimum/{d}": x for d, x in (found.optimum or {}).items()}
    for d, (low, high) in found.interval.items():
        last |= {f"interval_low/{d}": low, f"interval_high/{d}": high}
    if (decision := found.decision) is not None:
        last |= {
            "decision/move": float(decision.action == "move"),
            "decision/gain": decision.gain,
            "decision/gain_low": decision.gain_interval[0],
            "decision/gain_high": decision.gain_interval[1],
            "decision/probability": decision.probability,
            "decision/measured_gain": decision.direct_gain,
            "decision/joint_gain": decision.joint_gain,
            "decision/joint_probability": decision.joint_probability,
        }
    if found.cost is not None:
        last |= {"cost/flops": found.cost.total("flops"), "cost/search_share": found.cost.search_share}
    rows.append({k: float(v) for k, v in last.items() if v is not None and np.isfinite(v)})
    return [{k: float(v) for k, v in row.items()} for row in rows]


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
    """Log a decision as a run of its own.

    Args:
        found: The decision.
        table: What it was decided on.
        to: Names of trackers, or a function that takes numbers by name.
        project: Of the trackers that have projects.
        folder: Where trackers that write files write them.
        report: HTML page, attached where the tracker takes files (wandb, mlflow).

    Raises:
        ConfigError: A tracker that is not known or not installed.
    """
    rows = decision_rows(found, table)
    if callable(to):
        for row in rows:
            to(dict(row))
        return
    names = check_trackers(to, "to")
    settings = {"kind": found.kind, "points": [] if table is None else list(table.points)}
    for name in names:
        _logged(name, rows, found.summary(), {**settings, **_objective(found)}, project, Path(folder), report)


def _objective(found: MixtureFile) -> dict[str, Any]:
    return {"objective": found.settings.objective, "kl": found.settings.kl}


def _logged(
    name: str,
    rows: Iterable[Mapping[str, float]],
    summary: str,
    settings: dict[str, Any],
    project: str,
    folder: Path,
    report: Path | None,
) -> None:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it whether this is the first process
    kind = LOGGER_TYPE_TO_CLASS[name]
    own = _OWN_RUN.get(name, {})
    tracker: Any = kind(project, str(folder), **own) if kind.requires_logging_directory else kind(project, **own)
    tracker.start()
    try:
        # Lists are no hyperparameters to TensorBoard.
        tracker.store_init_configuration(
            {k: v if not isinstance(v, list) else ", ".join(v) for k, v in settings.items()}
        )
        for step, row in enumerate(rows):
            tracker.log(dict(row), step=step)
        if name == "tensorboard":
            tracker.log({"summary": summary}, step=0)
        elif name == "wandb" and report is not None:
            tracker.tracker.save(str(report), policy="now", base_path=str(report.parent))
        elif name == "mlflow" and report is not None:
            import_module("mlflow").log_artifact(str(report))
    finally:
        tracker.finish()
