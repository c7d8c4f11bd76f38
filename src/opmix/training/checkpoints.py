"""Trainer checkpoints that are whole: a marker is written last, so one that was being written when the process died is not used.

The marker keeps the sizes of the files, so one that was cut off later is not used either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerCallback

from opmix.runs.files import write_json
from opmix.runs.ranks import ranks_here
from opmix.training.factory import ReachedError
from opmix.training.objectives import Usage

MARKER = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How a run is kept, so that it can be gone on with."""

    key: str
    """Of the run; its checkpoints carry it."""
    previous_key: str | None = None
    """Of the run before, in the same folder: this one starts from its last checkpoint."""
    save_every: int = 100
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations of `held_out` by the Trainer; None: never."""
    held_out: Mapping[str, Dataset[Any]] | None = None
    """Rows by domain."""
    optimizer_state: Path | None = None
    """`optimizer.pt` whose moments the run starts with, unless it goes on from a checkpoint."""


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint when the Trainer has finished writing it, and drops those of the same run that are no longer needed."""

    def __init__(self, key: str, usage: Usage | None = None, keep: int = 1) -> None:
        self.key, self.usage, self.keep = key, usage or Usage(), keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer calls this after the last file of a checkpoint that this rank writes."""
        ranks = ranks_here()
        ranks.together()  # others may still be writing theirs
        folder = Path(args.output_dir)
        saved = folder / f"checkpoint-{state.global_step}"
        with ranks.agreed():
            if ranks.first:
                mark_checkpoint(saved, self.key, state.global_step, self.usage)
                for _, old in whole_checkpoints(folder, self.key)[: -self.keep]:
                    shutil.rmtree(old, ignore_errors=True)


def mark_checkpoint(folder: Path, key: str, step: int, usage: Usage) -> None:
    """Say that every file of a checkpoint is there; nothing may be written into it afterwards."""
    write_json(folder / MARKER, {**vars(usage), "key": key, "step": step, "files": _sizes(folder)})


class StopAt(TrainerCallback):
    """Ends a run before its schedule does, with a checkpoint to go on from."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Train no step after it, which a Trainer does that goes on from the checkpoint there."""
        if state.global_step >= self.step:
            raise ReachedError

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop at the step."""
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True
        return control


def whole_checkpoints(folder: Path, key: str | None = None) -> list[tuple[int, Path]]:
    """Step and folder of every whole checkpoint, by step; with `key` only those of that run."""
    found = []
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        try:
            content = json.loads(marker.read_text(encoding="utf-8"))
            whole = content["files"] == _sizes(
                marker.parent
            )  # a power cut can take the end of a file that was written before
            if whole and (key is None or content["key"] == key):
                found.append((int(content["step"]), marker.parent))
        except (ValueError, KeyError, TypeError, FileNotFoundError, RecursionError):
            continue  # a damaged marker is no marker, and the first rank may be removing what another looks at
    return sorted(found)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file but the marker, and those that were being written."""
    files = (path for path in folder.rglob("*") if path.is_file() and MARKER not in path.name)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}


def restore_usage(checkpoint: Path, key: str, usage: Usage) -> None:
    """Go on counting where a checkpoint of the same run left off; another run's counts are not this one's."""
    content = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    if content["key"] == key:
        usage.sampled_tokens, usage.flops = content.get("sampled_tokens", 0), content.get("flops")
        usage.extra.update(content.get("extra", {}))


def latest_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of one run as the first rank sees it, or None; all ranks ask."""
    ranks = ranks_here()
    found = whole_checkpoints(folder, key) if ranks.first else []
    return ranks.shared(found[-1][1] if found else None)


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, whole or not; what a tracker wrote beside them stays. Of several ranks the first one does."""
    if not ranks_here().first:
        return
    for path in folder.glob("*checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
