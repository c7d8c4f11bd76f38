"""One stage as one method lives it: its own decision, and its own way to train where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import Trainer

from opmix.comparison.bench import TrialBench
from opmix.comparison.merging import merged_model
from opmix.compute.cost import Cost
from opmix.compute.memory import watch_memory
from opmix.config import SearchConfig
from opmix.learners.base import Learner, Lesson
from opmix.lifecycle.measuring import watched_rows
from opmix.lifecycle.offer import decision_config, old_available
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.stage_run import StageRun
from opmix.lifecycle.stages import Segment
from opmix.methods.catalogue import Entry
from opmix.mixing.mixture import Mixture
from opmix.progress import Advance
from opmix.protocols.mixing_method import Proposal
from opmix.runs.files import write_json
from opmix.runs.store import RunStore
from opmix.training.checkpoints import mark_checkpoint
from opmix.training.factory import StepProgress, TrainSpec, run_training
from opmix.training.full import train_stretch
from opmix.training.matched import TrainingPlan
from opmix.training.objectives import Usage


@dataclass(kw_only=True)
class EntrantRun(StageRun):
    """A contested stage of one entrant and seed."""

    entry: Entry
    method: Any

    @property
    def schedule(self) -> Mapping[str, Any] | None:
        """Of proxy runs, the same shape as the stage's."""
        chosen = self.stage.config.schedule or self.stage.life.schedule
        return None if chosen is None else chosen.model_dump()

    # -- deciding ----------------------------------------------------------------------------------------------

    def _decide(self, segment: Segment, old: Mixture | None, plan: TrainingPlan) -> dict[str, Any]:
        folder = self.folder / f"search-{segment.start}"
        if self.entry.own_search:
            return super()._decide(segment, old, plan)
        config = decision_config(self.stage, segment, old, self.rows, plan.plan.cursors(), self.seed)

        def work() -> dict[str, Any]:
            watch = watch_memory()
            with RunStore(folder) as store:
                bench = self._bench(config, store, segment)
                proposal = self._proposed(bench, segment.stop - segment.start)
                write_json(
                    folder / "mixture.json",
                    {"kind": "proposal", "method": self.entry.name, "mixture": dict(proposal.mixture), "evidence": proposal.evidence},
                )  # fmt: skip
            chosen = proposal.mixture.on(tuple(config.domains))
            spent = bench.ledger.cost
            return {
                "mixture": dict(chosen), "optimum": dict(chosen), "interval": {}, "action": "move", "reason": self.entry.line,
                "predicted": {}, "baseline": {}, "notes": bench.prepared.notes(), "peak_memory": watch(), "probes": 0,
                "amounts": spent.json(), "share": spent.total("flops") / bench.training_flops, "evidence": proposal.evidence,
            }  # fmt: skip

        return self._step("search", segment.start, work, intact=(folder / "mixture.json").exists)

    def _bench(self, config: SearchConfig, store: RunStore, segment: Segment) -> TrialBench:
        runtime = self.runtime
        bench = TrialBench(
            config, runtime.base, store, schedule=self.schedule, architecture=runtime.life.architecture, progress=runtime.progress,
            make_trainer=runtime.make_trainer,
        )  # fmt: skip
        bench.prepare(self._model_at(segment), runtime.tokenizer, self.offer.only(config.domains))
        return bench

    def _proposed(self, bench: TrialBench, steps: int) -> Proposal:
        proposal: Proposal = self.method.propose(bench)
        return proposal

    # -- training ----------------------------------------------------------------------------------------------

    def _trained(self, segment: Segment, stream: TrainingPlan, usage: Usage, advance: Advance) -> Trainer:
        if not hasattr(self.method, "begin"):
            return super()._trained(segment, stream, usage, advance)
        learner: Learner = self.method
        lesson = self._lesson(usage)
        model = learner.begin(self._model_at(segment), lesson)
        if learner.in_place:
            moments = self.state.optimizer if self.stage.config.optimizer == "continued" else None
            trainer = train_stretch(
                model, stream.dataset, self._stretch(segment, stream.arguments), folder=self.checkpoints, seed=self.seed,
                make_trainer=lambda spec: learner.trainer(spec, lesson), report=advance, usage=usage, optimizer_state=moments,
                held_out=watched_rows(self.runtime, self.stage, self.seed),
            )  # fmt: skip
            learner.end(trainer.model, lesson)
            return trainer
        spec = TrainSpec(
            model=model, dataset=stream.dataset, output_dir=self.checkpoints, steps=self.stage.steps, seed=self.seed,
            arguments=stream.arguments, callbacks=[StepProgress(advance)],
        )  # fmt: skip
        trainer = run_training(lambda spec: learner.trainer(spec, lesson), spec)
        self._leave(learner.end(trainer.model, lesson), segment, usage)
        return trainer

    def _lesson(self, usage: Usage) -> Lesson:
        last, drawn = old_available(self.stage, self.state.mixture), self.state.cursors
        # All that was ever trained on, not only in the stage before: methods without replay train on one domain at a time.
        names = [n for n in self.stage.domains if (last is not None and last.get(n, 0.0) > 0) or drawn.get(n, 0) > 0]
        data = self.offer.only(names)
        before = None if self.state.model is None else self.state.model.parent / "learner"
        folder = self.folder / "learner"
        folder.mkdir(parents=True, exist_ok=True)
        return Lesson(
            old={n: data.train[n] for n in names}, old_mixture=last, rows_per_step=self.stage.rows_per_step,
            collate=self.offer.objective.collate, seed=self.seed, shape=shape_from(self.state.shape),
            sequence_length=self.stage.life.sequence_length, document_mask=self.stage.life.document_mask, folder=folder,
            before=before if before is not None and before.is_dir() else None, usage=usage,
        )  # fmt: skip

    def _leave(self, model: Any, segment: Segment, usage: Usage) -> None:
        """A plain model as the checkpoint of the segment's last step."""
        place = self.checkpoints / f"checkpoint-{segment.stop}"
        model.save_pretrained(place)
        mark_checkpoint(place, self.steps["train", segment.start].key, segment.stop, usage)


@dataclass(kw_only=True)
class RestartedRun(EntrantRun):
    """Every stage trains again from where the life starts."""

    def _model_at(self, segment: Segment) -> Any:
        return self.runtime.start_model(self.seed) if segment.start == 0 else super()._model_at(segment)

    def _empty_plan(self, domains: Sequence[str] | None = None) -> TrainingPlan:
        state = self.state
        self.state = replace(state, cursors={}, rows={})
        try:
            return super()._empty_plan(domains)
        finally:
            self.state = state


@dataclass(kw_only=True)
class MergedRun(EntrantRun):
    """No training: the search's adapters, averaged where they stand for the mixture, become part of the model."""

    def _train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[dict[str, Any], TrainingPlan]:
        old = old_available(self.stage, self.state.mixture)
        config = decision_config(self.stage, segment, old, self.rows, plan.plan.cursors(), self.seed)

        def work() -> dict[str, Any]:
            watch = watch_memory()
            with RunStore(self.folder / f"search-{segment.start}") as store:
                bench = self._bench(config, store, segment)
                model, weights = merged_model(bench, mixture.on(tuple(config.domains)))
            self._leave(model, segment, Usage())
            nothing = Cost.of("training", tokens=0.0).json()
            return {
                "mixture": dict(mixture), "key": self.steps["train", segment.start].key, "cursors": plan.plan.cursors(), "loss": None,
                "shares": dict(mixture), "supervised_tokens": 0, "amounts": nothing, "peak_memory": watch(),
                "interpolation_weights": dict(weights),
            }  # fmt: skip

        return self._step("train", segment.start, work, intact=lambda: self._is_finished() or self._left(segment)), plan

    def _left(self, segment: Segment) -> bool:
        return (self.checkpoints / f"checkpoint-{segment.stop}").exists()
