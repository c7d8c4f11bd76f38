"""The folder of one stage of one seed: where its models and checkpoints are, and the records of its steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opmix.compute.memory import watch_memory
from opmix.errors import StoreError
from opmix.lifecycle.measuring import watched_rows
from opmix.lifecycle.records import SavedModel, StageDecision, StageState, TrainingRecord, read_record, record_json
from opmix.lifecycle.runtime import LifeRuntime, Place
from opmix.lifecycle.stages import Segment, Stage
from opmix.lifecycle.steps import Kind, Step
from opmix.report.card import CardPart, search_cost
from opmix.runs.files import write_json
from opmix.training.checkpoints import Checkpoints, drop_checkpoints, whole_checkpoints
from opmix.training.stage_data import StageData

_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """One stage of one seed: what it starts from, and what it has on disk."""

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
    def data(self) -> StageData:
        """What the stage trains on."""
        return self.runtime.stage_data[self.stage.index]

    @property
    def rows(self) -> Mapping[str, int]:
        """Training rows by domain."""
        return self.runtime.facts.rows_of(self.stage)

    @property
    def checkpoints(self) -> Path:
        """The Trainer's, while the stage runs."""
        return self.folder / "checkpoints"

    def key(self, kind: Kind, segment: Segment) -> str:
        """Return the fingerprint of a segment's decision or training."""
        return self.steps[kind, segment.start].key

    def key_before(self, segment: Segment) -> str | None:
        """Return the key of the training that a segment goes on from; None at the start of the stage."""
        return None if segment.start == 0 else self.key("train", self.stage.segments[segment.number - 1])

    def model_at(self, segment: Segment, place: Place | None = None) -> Any:
        """Return the model as it is when a segment begins, always read from disk, so that a resumed life is the unbroken one.

        Args:
            segment: Of this stage.
            place: None: where models are measured.

        Raises:
            StoreError: The checkpoint in which the segment before ended is gone.
        """
        key = self.key_before(segment)
        if key is None:
            return self.base_model(place)
        for at, folder in whole_checkpoints(self.checkpoints, key):
            if at == segment.start:
                return self.runtime.load(folder, place=place)
        raise StoreError(
            f"{self.checkpoints}: no whole checkpoint of step {segment.start}; run again to train up to it"
        )

    def base_model(self, place: Place | None = None) -> Any:
        """Return the model that the stage starts from."""
        if self.state.model is None:
            return self.runtime.start_model(self.seed, place)
        return self.runtime.load(self.state.model, self.state.model_key, place)

    def checkpointing(self, segment: Segment) -> Checkpoints:
        """Return how the training of a segment is kept."""
        stage, life = self.stage, self.stage.life
        every, shown = life.checkpoint_every, life.evaluation.every
        save_every = stage.steps // 10 if every is None else round(every / stage.step_tokens)
        return Checkpoints(
            key=self.key("train", segment),
            previous_key=self.key_before(segment),
            save_every=max(1, save_every),
            evaluate_every=None if shown is None else max(1, round(shown / stage.step_tokens)),
            held_out=watched_rows(self.runtime, stage, self.seed),
            optimizer_state=self.state.optimizer if stage.config.optimizer == "continued" else None,
        )

    def save(self, key: str) -> SavedModel:
        """Keep the model of the last checkpoint that carries `key`, and its moments where the next stage continues them.

        Raises:
            StoreError: The checkpoint is gone.
        """
        folder = self.folder / "model"

        def work() -> SavedModel:
            source = next((f for at, f in whole_checkpoints(self.checkpoints, key) if at == self.stage.steps), None)
            if source is None:
                raise StoreError(
                    f"{self.checkpoints}: the stage's last checkpoint is gone; run again to train up to it"
                )
            made = self.runtime.save(self.runtime.load(source, place=self.runtime.whole_place), folder, self.card())
            (self.folder / "optimizer.pt").unlink(missing_ok=True)
            if self._continued_next():
                shutil.copyfile(source / "optimizer.pt", self.folder / ".optimizer.pt")
                (self.folder / ".optimizer.pt").replace(self.folder / "optimizer.pt")
            return SavedModel(fingerprint=made)

        intact = (folder / "config.json").exists
        return self.step("model", None, SavedModel, work, intact=lambda: not self.needed or intact())

    def card(self) -> list[CardPart]:
        """Return what the stage's model was trained on, segment by segment, as far as it is on record."""
        parts = []
        for segment in self.stage.segments:
            trained = self.recorded("train", segment, TrainingRecord)
            if trained is None:
                continue
            decided = ("search", segment.start) in self.steps
            told = self.recorded("search", segment, StageDecision) if decided else None
            moved = told is not None and dict(told.optimum) == dict(trained.mixture)
            flops = 0.0 if told is None else told.amounts.total("flops")
            parts.append(
                CardPart(
                    title=f"{self.stage.config.name}, steps {segment.start} to {segment.stop}",
                    mixture={d: x for d, x in trained.mixture.items() if x > 0},
                    interval=told.interval if told is not None and moved else {},
                    level=self.stage.settings.decision.interval_level,
                    reason="" if told is None else told.reason,
                    tokens=trained.supervised_tokens,
                    cost="" if told is None or not flops else search_cost(flops, told.share),
                )
            )
        return parts

    def _continued_next(self) -> bool:
        later = self.stage.index + 1
        return later < len(self.stage.life.stages) and self.stage.life.stages[later].optimizer == "continued"

    def moments(self) -> Path | None:
        """The optimiser's state at the end of the stage, where it was kept."""
        last = self.stage.segments[-1]
        ends = whole_checkpoints(self.checkpoints, self.steps["train", last.start].key)
        found = [self.folder / "optimizer.pt", *(f / "optimizer.pt" for at, f in ends if at == last.stop)]
        return next((path for path in found if path.exists()), None)

    def check_moments(self) -> None:
        """Refuse a stage that is to continue moments that were not kept.

        Raises:
            StoreError: What to do instead.
        """
        if self.stage.config.optimizer == "continued" and self.state.optimizer is None and not self.is_finished():
            raise StoreError(
                f"stage {self.stage.config.name!r}: the moments in which the stage before ended were not kept (no "
                "stage continued them "
                f"then); use optimizer: fresh, or delete {self.state.model} to have that stage trained again"
            )

    def tidy(self) -> None:
        """Drop what is only needed while the stage runs."""
        if not self.runtime.store.ranks.first:
            return
        if not self.stage.life.keep.checkpoints:
            drop_checkpoints(self.checkpoints)
        before = self.state.model
        if self.stage.life.keep.models == "last" and before is not None and before.is_relative_to(self.folder.parent):
            shutil.rmtree(before, ignore_errors=True)  # a model that several lives start from is none of this one's

    def is_finished(self) -> bool:
        """Whether the model at the end of the stage is there, so that its checkpoints are not missed."""
        step = self.steps["model", None]
        there = not self.needed or (self.folder / "model" / "config.json").exists()
        return there and self.runtime.store.found(step.name, step.key) is not None

    def trained(self, segment: Segment) -> bool:
        """Whether what a segment's training left is there, or no longer missed."""
        ends = whole_checkpoints(self.checkpoints, self.key("train", segment))
        return self.is_finished() or any(at == segment.stop for at, _ in ends)

    def recorded(self, kind: Kind, segment: Segment, record: type[_Record]) -> _Record | None:
        """Return the record of a segment's finished step, or None."""
        found = self.runtime.store.found(self.steps[kind, segment.start].name, self.key(kind, segment))
        return None if found is None else read_record(record, found)

    def check_room(self) -> None:
        """Refuse to train where the disk has no room for the checkpoints.

        Raises:
            StoreError: How much is missing.
        """
        weights = 4.0 * float(self.state.shape["parameters"])
        self.runtime.check_room(f"stage {self.stage.config.name!r}", weights * (3 * (len(self.stage.segments) + 1) + 1))

    def step(
        self,
        kind: Kind,
        start: int | None,
        record: type[_Record],
        work: Callable[[], _Record],
        *,
        intact: Callable[[], bool] = lambda: True,
    ) -> _Record:
        """Do a step of the stage, or find it done; returns its record as the run folder keeps it."""
        step, store = self.steps[kind, start], self.runtime.store

        def watched() -> Mapping[str, Any]:
            store.event("begin", step=step.name)
            peak = watch_memory()
            content = record_json(work())
            return content if kind == "model" else {**content, "peak_memory": peak()}

        result, found = store.step(step.name, step.inputs, watched, intact=intact, together=kind != "model")
        if not found:
            store.event("end", step=step.name)
            if kind in ("search", "train"):
                content = {"stage": self.stage.config.name, "step": start, "mixture": result["mixture"]}
                write_json(self.folder / "mixture.json", content)
        return read_record(record, result)

    def task(self, what: str) -> str:
        """Return what a progress display says of the stage's work."""
        several = len(self.stage.life.seeds) > 1
        return f"{self.stage.config.name}: {what}" + (f", seed {self.seed}" if several else "")
