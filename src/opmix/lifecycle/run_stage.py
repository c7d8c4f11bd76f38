"""One stage: measure, decide and train segment by segment, save, measure again. Each is a step of the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opmix.compute.cost import Cost
from opmix.lifecycle.available_domains import available, fixed_mixture, old_available, rejected
from opmix.lifecycle.measuring import harness_results, measure, task_scores
from opmix.lifecycle.records import (
    Measurement,
    SegmentOutcome,
    StageDecision,
    StageOutcome,
    StageState,
    TrainingRecord,
)
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment, Stage
from opmix.lifecycle.steps import Kind
from opmix.mixing.mixture import Mixture
from opmix.training.plan import TrainingPlan


class Decider(Protocol):
    """Finds the mixture of a segment."""

    def decide(self, segment: Segment, old: Mixture | None, drawn: Mapping[str, int]) -> StageDecision:
        """Decide, or find it decided; `drawn`: training rows read so far, by domain."""


class StageTrainer(Protocol):
    """Trains the full model through the segments of a stage."""

    def start(self) -> TrainingPlan:
        """Return the stage's plan before its first row."""

    def train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[TrainingRecord, TrainingPlan]:
        """Train a segment, or find it trained; `plan`: of the segments before, returned with this one's rows."""


def run_stage(at: StageFolder, decider: Decider, trainer: StageTrainer) -> tuple[StageOutcome, StageState]:
    """Run a stage, or what is left of it; returns what happened and what the next stage starts from.

    Raises:
        OpMixError: Whatever stops it; nothing finished is lost.
    """
    stage, state = at.stage, at.state
    # What cannot be is said before anything is trained.
    if stage.searched:
        old_available(stage, state.mixture)
    at.check_moments()
    before = _measured(at, "before", at.base_model)
    plan, mixture = trainer.start(), state.mixture
    segments: list[SegmentOutcome] = []
    notes: list[str] = []
    for segment in stage.segments:
        decision = None
        if segment.decided:
            drawn = plan.plan.cursors()
            decision = decider.decide(segment, mixture, drawn)
            notes += _left_out(stage, mixture, at.rows, drawn)
            mixture = Mixture.normalised({n: decision.mixture.get(n, 0.0) for n in stage.domains})
        else:
            mixture = fixed_mixture(stage, state.mixture, at.rows)
        record, plan = trainer.train(segment, mixture, plan)
        mixture = Mixture.of(record.mixture)
        segments.append(SegmentOutcome(segment=segment, mixture=mixture, decision=decision, training=record))
    model = at.save(record.key)
    after = _measured(at, "after", lambda: at.runtime.load(at.folder / "model", model.fingerprint))
    at.tidy()
    outcome = StageOutcome(
        segments=segments,
        old=state.mixture,
        before={s: {**state.losses.get(s, {}), **before.losses.get(s, {})} for s in ("valid", "test")},
        scores_before={**state.scores, **before.scores},
        after=after,
        notes=notes,
    )
    return outcome, StageState(
        model=at.folder / "model",
        model_key=model.fingerprint,
        shape=state.shape,
        mixture=mixture,
        cursors={**state.cursors, **record.cursors},
        rows={**state.rows, **at.rows},
        losses=after.losses,
        scores=after.scores,
        optimizer=at.moments(),
    )


def _left_out(stage: Stage, old: Mixture | None, rows: Mapping[str, int], drawn: Mapping[str, int]) -> list[str]:
    """Say which domains a decision did not weigh, and why."""
    turned_down, left = rejected(stage, old), available(stage, rows, drawn)
    weigh = "was turned down before and is not weighed again; name it in `add` to have it weighed"
    why = {**dict.fromkeys(stage.domains, "is used up and no longer on offer"), **dict.fromkeys(turned_down, weigh)}
    return [f"{n} {why[n]}" for n in stage.domains if n in turned_down or n not in left]


def _measured(at: StageFolder, kind: Kind, model: Callable[[], Any]) -> Measurement:
    """Held-out losses and task scores of the full model."""
    names, runtime = list(at.steps[kind, None].settings["data"]), at.runtime

    def work() -> Measurement:
        started = time.perf_counter()
        loaded = model() if names else None
        losses, tokens = measure(loaded, runtime, names, at.seed)
        scores = task_scores(loaded, runtime, names)
        flops = tokens * shape_from(at.state.shape).forward(at.stage.settings.sequence_length)
        tasks = harness_results(loaded, runtime) if kind == "after" else []
        amounts = Cost.of("measuring", tokens=tokens, flops=flops, seconds=time.perf_counter() - started)
        return Measurement(losses=losses, scores=scores, tasks=tasks, amounts=amounts)

    return at.step(kind, None, Measurement, work)
