"""A compared stage whose mixture is decided while it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from opmix.lifecycle.records import StageDecision, TrainingRecord
from opmix.lifecycle.segment_training import first_plan, training_record
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.trial_runner import TrialRunner, segments_json
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.held_out import held_out
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.online_mixer import MixerSegment, OnlineMixer, State
from opmix.target import served_sets
from opmix.training.objectives import Usage
from opmix.training.online import OnlineRun, train_online
from opmix.training.plan import TrainingPlan
from opmix.training.signals import SignalSources


def first_segment(mixer: OnlineMixer, trials: TrialRunner, steps: int) -> Proposal:
    """What a mixer begins a run with: the stage's decision, with its state as evidence."""
    state, segment = mixer.init(trials, steps)
    return Proposal(mixture=segment.mixture, evidence={"state": state, "steps": segment.steps})


@dataclass(frozen=True)
class OnlineTraining:
    """Trains on the mixer's first segment, which is the stage's decision, and on what it decides later (kept in checkpoints)."""

    at: StageFolder
    mixer: OnlineMixer

    def start(self) -> TrainingPlan:
        """See `StageTrainer`."""
        return first_plan(self.at)

    def train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[TrainingRecord, TrainingPlan]:
        """See `StageTrainer`."""
        at, stage = self.at, self.at.stage

        def work() -> TrainingRecord:
            at.check_room()
            started, usage = time.perf_counter(), Usage()
            with at.runtime.progress.task(at.task("train"), stage.steps) as advance:
                result = train_online(
                    at.model_at(segment),
                    self._run(self._first(segment)),
                    folder=at.checkpoints,
                    checkpoints=at.checkpointing(segment),
                    usage=usage,
                    report=advance,
                )
            drawn = Mixture.normalised(result.plan.shares).on(stage.domains)
            record = training_record(at, segment, drawn, result.plan, result.trainer, usage, started)
            return replace(record, stints=segments_json(result.segments))

        return at.step("train", segment.start, TrainingRecord, work, intact=lambda: at.trained(segment)), plan

    def _first(self, segment: Segment) -> tuple[State, MixerSegment]:
        decided = self.at.recorded("search", segment, StageDecision)
        assert decided is not None  # a stage is decided before it is trained
        assert decided.evidence is not None
        return decided.evidence["state"], MixerSegment(Mixture.of(decided.mixture), int(decided.evidence["steps"]))

    def _run(self, start: tuple[State, MixerSegment]) -> OnlineRun:
        at, stage, names = self.at, self.at.stage, start[1].mixture.names
        return OnlineRun(
            mixer=self.mixer,
            start=start,
            rows={n: at.data.train[n] for n in names},
            steps=stage.steps,
            arguments=stage.trainer,
            seed=at.seed,
            senses=self._senses(names),
            objective=at.data.objective,
            max_epochs=stage.epochs_allowed,
            document_mask=stage.settings.document_mask,
            previous=first_plan(at, names),
        )

    def _senses(self, names: tuple[str, ...]) -> SignalSources:
        stage = self.at.stage
        served = served_sets(stage.settings.targets, stage.settings.solve.weights, names)
        valid = self.at.data.only([*names, *stage.settings.targets]).evaluated("valid")
        sets = [self._held_out(n, rows) for n, rows in valid.items() if n in (served or names)]
        return SignalSources(
            evaluate=lambda model: evaluate(model, sets).losses[0],
            held_out=valid,
            evaluate_tokens=float(sum(h.input_ids.size for h in sets)),
            served=served,
        )

    def _held_out(self, name: str, rows: Any) -> HeldOut:
        told = self.at.stage.settings
        num = told.proxies.eval_sequences
        return held_out(name, rows, num=num, seed=self.at.seed, document_mask=told.document_mask)
