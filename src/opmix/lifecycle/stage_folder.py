"""The folder of one stage of one seed: where its models and checkpoints are, and the records of its steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opmix.config import ModelConfig
from opmix.errors import StoreError
from opmix.lifecycle.runtime import LifeRuntime
from opmix.lifecycle.stages import Segment, Stage
from opmix.lifecycle.steps import Kind, Step
from opmix.mixing.mixture import Mixture
from opmix.runs.files import disk_errors, write_json
from opmix.training.checkpoints import drop_checkpoints, whole_checkpoints


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What one stage hands to the next."""

    model: Path | None
    """None: made or loaded from where the life starts."""
    model_key: str | None
    """Fingerprint of its weights, checked when it is loaded."""
    shape: Mapping[str, Any]
    mixture: Mixture | None
    """Last trained on; None: nothing yet."""
    cursors: Mapping[str, int] = field(default_factory=dict)
    """Training rows drawn so far, by domain."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows each of these domains had; with another number they were cut otherwise, and the cursor means nothing."""
    losses: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Split, domain: loss and its standard error."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """Task scores by domain."""
    optimizer: Path | None = None


@dataclass(kw_only=True)
class StageFolder:
    """What a stage has on disk."""

    runtime: LifeRuntime
    stage: Stage
    seed: int
    steps: Mapping[tuple[Kind, int | None], Step]
    """By kind and the start of the segment."""
    state: StageState
    needed: bool
    """Whether the model must be on disk when this is over: a later stage starts from it, or it is the last."""
    home: str
    """Folder of this life in the run folder."""

    @property
    def folder(self) -> Path:
        """Of this stage."""
        return self.runtime.folder / self.home / self.stage.label

    @property
    def checkpoints(self) -> Path:
        """The Trainer's, while the stage runs."""
        return self.folder / "checkpoints"

    def _key_before(self, segment: Segment) -> str | None:
        if segment.start == 0:
            return None
        return self.steps["train", self.stage.segments[segment.number - 1].start].key

    def _model_at(self, segment: Segment) -> Any:
        """The model as it is when a segment begins: always read from disk, so that a resumed life is the unbroken one."""
        key = self._key_before(segment)
        if key is None:
            return self._base()
        for at, folder in whole_checkpoints(self.checkpoints, key):
            if at == segment.start:
                return self.runtime.load(folder)
        raise StoreError(
            f"{self.checkpoints}: no whole checkpoint of step {segment.start}; run again to train up to it"
        )

    def _base(self) -> Any:
        if self.state.model is None:
            return self.runtime.start_model(self.seed)
        return self.runtime.load(self.state.model, self.state.model_key)

    def _named(self, segment: Segment, model: ModelConfig) -> ModelConfig:
        """Where the model of a decision can be found again (`opmix verify`), if it stays on disk."""
        life = self.runtime.life
        start = life.model or model
        dtype = "float32" if start.dtype == "auto" else start.dtype  # as the life loads it, whatever the device
        told = start.model_copy(update={"dtype": dtype, "chat_template": life.chat_template})
        if segment.start or (self.state.model is None and life.model is None):
            return told.model_copy(update={"name": model.name})
        return (
            told
            if self.state.model is None
            else told.model_copy(update={"name": str(self.state.model.resolve()), "tokenizer": None})
        )

    def _save(self, key: str) -> dict[str, Any]:
        folder = self.folder / "model"

        def work() -> dict[str, Any]:
            source = next((f for at, f in whole_checkpoints(self.checkpoints, key) if at == self.stage.steps), None)
            if source is None:
                raise StoreError(
                    f"{self.checkpoints}: the stage's last checkpoint is gone; run again to train up to it"
                )
            made = self.runtime.save(self.runtime.load(source), folder)
            (self.folder / "optimizer.pt").unlink(missing_ok=True)
            if self._continued_next():
                shutil.copyfile(source / "optimizer.pt", self.folder / ".optimizer.pt")
                (self.folder / ".optimizer.pt").replace(self.folder / "optimizer.pt")
            return {"fingerprint": made}

        def intact() -> bool:
            return not self.needed or (folder / "config.json").exists()

        return self._step("model", None, work, intact=intact)

    def _continued_next(self) -> bool:
        later = self.stage.index + 1
        return later < len(self.stage.life.stages) and self.stage.life.stages[later].optimizer == "continued"

    def _moments(self) -> Path | None:
        """The optimiser's state at the end of the stage, where it was kept."""
        last = self.stage.segments[-1]
        ends = whole_checkpoints(self.checkpoints, self.steps["train", last.start].key)
        found = [self.folder / "optimizer.pt", *(f / "optimizer.pt" for at, f in ends if at == last.stop)]
        return next((path for path in found if path.exists()), None)

    def _check_moments(self) -> None:
        if self.stage.config.optimizer == "continued" and self.state.optimizer is None and not self._is_finished():
            raise StoreError(
                f"stage {self.stage.config.name!r}: the moments in which the stage before ended were not kept (no stage continued them "
                f"then); use optimizer: fresh, or delete {self.state.model} to have that stage trained again"
            )

    def _tidy(self) -> None:
        """Drop what is only needed while the stage runs."""
        if not self.stage.life.keep.checkpoints:
            drop_checkpoints(self.checkpoints)
        before = self.state.model
        if self.stage.life.keep.models == "last" and before is not None and before.is_relative_to(self.folder.parent):
            shutil.rmtree(before, ignore_errors=True)  # a model that several lives start from is none of this one's

    def _is_finished(self) -> bool:
        """Whether the model at the end of the stage is there, so that its checkpoints are not missed."""
        step = self.steps["model", None]
        there = not self.needed or (self.folder / "model" / "config.json").exists()
        return there and self.runtime.store.found(step.name, step.key) is not None

    def _check_room(self) -> None:
        weights = 4.0 * float(self.state.shape["parameters"])
        self.runtime.check_room(f"stage {self.stage.config.name!r}", weights * (3 * (len(self.stage.segments) + 1) + 1))

    def _step(
        self,
        kind: Kind,
        start: int | None,
        work: Callable[[], Mapping[str, Any]],
        *,
        intact: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        step, store = self.steps[kind, start], self.runtime.store

        def watched() -> Mapping[str, Any]:
            store.event("begin", step=step.name)
            return work()

        with disk_errors(self.runtime.folder):
            result, found = store.step(step.name, step.inputs, watched, intact=intact)
        if not found:
            store.event("end", step=step.name)
            if kind in ("search", "train"):
                write_json(
                    self.folder / "mixture.json",
                    {"stage": self.stage.config.name, "step": start, "mixture": result["mixture"]},
                )
        return result

    def _task(self, what: str) -> str:
        several = len(self.stage.life.seeds) > 1
        return f"{self.stage.config.name}: {what}" + (f", seed {self.seed}" if several else "")
