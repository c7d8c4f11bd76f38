"""TensorBoard: event files, one folder a run, read by the `tensorboard` package (extra `tensorboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opmix.errors import DataError
from opmix.trackers.runs import TrackedRun

_EVENTS = "*tfevents*"
_HPARAMS = "_hparams_/session_start_info"


def read_tensorboard(path: Path) -> tuple[TrackedRun, ...]:
    """Runs of a log folder: hyperparameters, and the last value of every scalar.

    `SummaryWriter.add_hparams` writes hyperparameters into a folder of their own below the run's; they are joined
    with the scalars of the folder above.

    Raises:
        DataError: The package is missing, or there are no event files.
    """
    folders = sorted({file.parent for file in path.rglob(_EVENTS)})
    if not folders:
        raise DataError(f"{path}: no event files below it; expected a TensorBoard log folder with one folder a run")
    found = {folder: _read(folder) for folder in folders}
    runs = []
    for folder, (settings, metrics) in found.items():
        below = [f for f in folders if f.parent == folder and found[f][0] and not settings]
        if settings and folder.parent in found and not found[folder.parent][0]:
            continue  # belongs to the folder above
        for inner in below:
            settings, metrics = {**settings, **found[inner][0]}, {**found[inner][1], **metrics}
        name = folder.relative_to(path).as_posix()
        runs.append(TrackedRun(name=folder.name if name == "." else name, settings=settings, metrics=metrics))
    return tuple(runs)


def _read(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Hyperparameters and last scalars of one folder's event files."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise DataError(
            f"{folder}: event files need the tensorboard package ({error}); pip install tensorboard"
        ) from error
    # One item a tag is enough: the reservoir always keeps the last.
    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()
    metrics = {tag: float(events.Scalars(tag)[-1].value) for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            metrics[tag] = float(make_ndarray(events.Tensors(tag)[-1].tensor_proto))
    settings: dict[str, float] = {}
    if _HPARAMS in events.summary_metadata:
        content = HParamsPluginData.FromString(events.SummaryMetadata(_HPARAMS).plugin_data.content)
        hparams = content.session_start_info.hparams
        settings = {name: v.number_value for name, v in hparams.items() if v.HasField("number_value")}
    return settings, metrics
