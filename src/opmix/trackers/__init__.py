"""Finished runs out of experiment trackers, as a swarm for `opmix fit`; and decisions into them. Loads no torch and no tracker.

A new tracker is one reader from a path to `TrackedRun`s and one row in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opmix.errors import ConfigError
from opmix.mixing.swarm import Directions, Swarm
from opmix.trackers.mlflow import read_mlflow
from opmix.trackers.runs import TrackedRun, swarm_of
from opmix.trackers.tensorboard import read_tensorboard
from opmix.trackers.wandb import read_wandb
from opmix.trackers.write import check_trackers, log_decision, log_run

READERS: dict[str, Callable[[Path], tuple[TrackedRun, ...]]] = {
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
}
"""By the name that `opmix fit --from` takes."""

RATIO_PREFIX = "ratio/"
METRIC_PREFIX = "eval/"


def read_tracked(
    path: Path,
    source: str,
    *,
    ratio_prefix: str = RATIO_PREFIX,
    metric_prefix: str = METRIC_PREFIX,
    directions: Directions | None = None,
) -> Swarm:
    """Runs of a tracker, ready to fit.

    Args:
        path: What the tracker wrote or exported.
        source: Name in `READERS`.
        ratio_prefix: Of the shares' names, which are configured or logged; the rest of a name is the domain.
        metric_prefix: Of the losses' names.
        directions: Which metrics are fitted, and which way is better; None: all losses under the prefix.

    Raises:
        ConfigError: No such tracker.
        DataError: Files that cannot be read, or no run with shares and losses.
    """
    if source not in READERS:
        raise ConfigError(f"--from: {source!r}; expected table, {', '.join(READERS)}")
    return swarm_of(
        READERS[source](path),
        path,
        ratio_prefix=ratio_prefix,
        metric_prefix=metric_prefix,
        directions=directions or Directions(),
    )


__all__ = ["TrackedRun", "check_trackers", "log_decision", "log_run", "read_tracked"]
