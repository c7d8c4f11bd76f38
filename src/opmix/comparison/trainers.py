"""Other ways to train a stage than plainly: with a continual learner, or by merging the adapters of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from opmix.compute.cost import Cost
from opmix.config import SearchConfig
from opmix.continual.base import Learner, StageContext
from opmix.lifecycle.available_domains import decision_config, old_available
from opmix.lifecycle.records import TrainingRecord
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.segment_training import first_plan, train_kept
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.merging import merged_model
from opmix.mixture_search.trial_runner import TrialRunner
from opmix.progress import Advance
from opmix.runs.store import RunStore
from opmix.training.checkpoints import mark_checkpoint
from opmix.training.factory import run_training
from opmix.training.full import planned_run
from opmix.training.objectives import Usage
from opmix.training.plan import TrainingPlan


def train_continually(
    learner: Learner, at: StageFolder, segment: Segment, stream: TrainingPlan, usage: Usage, advance: Advance
) -> Trainer:
    """Train with a continual learner; see `TrainSegment`."""
    lesson = _lesson(at, usage)
    model = learner.begin(at.model_at(segment), lesson)
    if learner.in_place:
        trainer = train_kept(at, segment, model, stream, usage, advance, lambda spec: learner.trainer(spec, lesson))
        learner.end(trainer.model, lesson)
        return trainer
    spec = planned_run(model, stream, folder=at.checkpoints, seed=at.seed, report=advance)
    trainer = run_training(lambda spec: learner.trainer(spec, lesson), spec)
    _leave(learner.end(trainer.model, lesson), at, segment, usage)
    return trainer


def _lesson(at: StageFolder, usage: Usage) -> StageContext:
    last, drawn = old_available(at.stage, at.state.mixture), at.state.cursors
    # All that was ever trained on, not only in the stage before: methods without replay train on one domain at a time.
    names = [n for n in at.stage.domains if (last is not None and last.get(n, 0.0) > 0) or drawn.get(n, 0) > 0]
    data = at.data.only(names)
    before = None if at.state.model is None else at.state.model.parent / "learner"
    folder = at.folder / "learner"
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        old={n: data.train[n] for n in names},
        old_mixture=last,
        rows_per_step=at.stage.rows_per_step,
        collate=at.data.objective.collate,
        seed=at.seed,
        shape=shape_from(at.state.shape),
        sequence_length=at.stage.settings.sequence_length,
        document_mask=at.stage.settings.document_mask,
        folder=folder,
        before=before if before is not None and before.is_dir() else None,
        usage=usage,
    )


def _leave(model: Any, at: StageFolder, segment: Segment, usage: Usage) -> None:
    """A plain model as the checkpoint of the segment's last step."""
    place = at.checkpoints / f"checkpoint-{segment.stop}"
    model.save_pretrained(place)
    mark_checkpoint(place, at.key("train", segment), segment.stop, usage)


def trial_runner(at: StageFolder, config: SearchConfig, store: RunStore, segment: Segment) -> TrialRunner:
    """Return the trials of a segment's decision, on the model as it is when the segment begins."""
    runtime = at.runtime
    context = SearchContext(config, runtime.base, store, runtime.progress, runtime.make_trainer)
    context.prepare(at.model_at(segment), runtime.tokenizer, at.data.only([*config.domains, *config.targets]))
    return TrialRunner(context, runtime.tokenizer, at.stage.schedule, runtime.life.architecture)


@dataclass(frozen=True)
class MergedTraining:
    """No training: the search's adapters, averaged where they stand for the mixture, become part of the model."""

    at: StageFolder

    def start(self) -> TrainingPlan:
        """See `StageTrainer`."""
        return first_plan(self.at)

    def train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[TrainingRecord, TrainingPlan]:
        """See `StageTrainer`."""
        at, cursors = self.at, plan.plan.cursors()
        old = old_available(at.stage, at.state.mixture)
        config = decision_config(at.stage, at.stage.tokens_in(segment), at.seed, old, rows=at.rows, drawn=cursors)

        def work() -> TrainingRecord:
            with RunStore(at.folder / f"search-{segment.start}") as store:
                trials = trial_runner(at, config, store, segment)
                model, weights = merged_model(trials.context, mixture.on(trials.problem.domains))
            _leave(model, at, segment, Usage())
            return TrainingRecord(
                mixture=dict(mixture),
                key=at.key("train", segment),
                cursors=cursors,
                loss=None,
                shares=dict(mixture),
                supervised_tokens=0,
                amounts=Cost.of("training", tokens=0.0),
                interpolation_weights=dict(weights),
            )

        left = (at.checkpoints / f"checkpoint-{segment.stop}").exists
        intact = lambda: at.is_finished() or left()  # noqa: E731
        return at.step("train", segment.start, TrainingRecord, work, intact=intact), plan
