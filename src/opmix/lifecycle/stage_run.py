"""One stage lived: measure, then decide and train for every segment of it, save, measure again. Each is a step of the run folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import Trainer

from opmix.compute.cost import Cost
from opmix.compute.memory import watch_memory
from opmix.data import MixtureDataset, MixturePlan
from opmix.lifecycle.measuring import harness_results, last_loss, measure, task_scores, watched_rows, write_log
from opmix.lifecycle.offer import decision_config, fixed_mixture, old_available, rejected
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.search import run_search
from opmix.lifecycle.stage_data import StageData
from opmix.lifecycle.stage_folder import StageFolder, StageState
from opmix.lifecycle.stages import Segment
from opmix.lifecycle.steps import Kind, epochs_allowed
from opmix.mixing.mixture import Mixture
from opmix.progress import Advance
from opmix.training.checkpoints import whole_checkpoints
from opmix.training.full import Stretch, train_stretch
from opmix.training.matched import TrainingPlan, plan_training, training_cost
from opmix.training.objectives import Usage


@dataclass(kw_only=True)
class StageRun(StageFolder):
    """One stage of one seed."""

    notes: list[str] = field(default_factory=list)

    @property
    def offer(self) -> StageData:
        """What the stage trains on."""
        return self.runtime.stage_data[self.stage.index]

    @property
    def rows(self) -> Mapping[str, int]:
        """Training rows by domain."""
        return self.runtime.facts.rows_of(self.stage)

    def run(self) -> tuple[dict[str, Any], StageState]:
        """Live it, or find it lived; returns what happened and what the next stage starts from.

        Raises:
            OpMixError: Whatever stops it; nothing finished is lost.
        """
        # What cannot be is said before anything is trained.
        if self.stage.searched:
            old_available(self.stage, self.state.mixture)
        self._check_moments()
        before = self._measure("before", lambda: self._base())
        losses = {s: {**self.state.losses.get(s, {}), **before["losses"].get(s, {})} for s in ("valid", "test")}
        scores = {**self.state.scores, **before["scores"]}
        parts: list[dict[str, Any]] = []
        plan, mixture = self._empty_plan(), self.state.mixture
        for segment in self.stage.segments:
            decision = self._decide(segment, mixture, plan) if segment.decided else None
            if decision is None:
                mixture = fixed_mixture(self.stage, self.state.mixture, self.rows)
            else:
                mixture = Mixture.normalised({n: decision["mixture"].get(n, 0.0) for n in self.stage.domains})
            record, plan = self._train(segment, mixture, plan)
            mixture = Mixture.of(record["mixture"])
            parts.append({"segment": segment, "mixture": mixture, "decision": decision, "training": record})
        model = self._save(parts[-1]["training"]["key"])
        after = self._measure("after", lambda: self.runtime.load(self.folder / "model", model["fingerprint"]))
        self._tidy()
        assert mixture is not None
        outcome = {
            "parts": parts, "before": losses, "after": after["losses"], "scores": (scores, after["scores"]), "tasks": after["tasks"],
            "old": self.state.mixture, "notes": self.notes,
        }  # fmt: skip
        return outcome, StageState(
            model=self.folder / "model", model_key=model["fingerprint"], shape=self.state.shape, mixture=mixture,
            cursors={**self.state.cursors, **parts[-1]["training"]["cursors"]}, rows={**self.state.rows, **self.rows},
            losses=after["losses"], scores=after["scores"], optimizer=self._moments(),
        )  # fmt: skip

    # -- deciding -----------------------------------------------------------------------------------------------

    def _decide(self, segment: Segment, old: Mixture | None, plan: TrainingPlan) -> dict[str, Any]:
        folder, drawn, rows = self.folder / f"search-{segment.start}", plan.plan.cursors(), self.rows
        config = decision_config(self.stage, segment, old, rows, drawn, self.seed)
        config = config.model_copy(update={"model": self._named(segment, config.model)})
        turned_down = rejected(self.stage, old)
        for name in self.stage.domains:
            if name in turned_down:
                self.notes.append(
                    f"{name} was turned down before and is not weighed again; name it in `add` to have it weighed"
                )
            elif name not in config.domains:
                self.notes.append(f"{name} is used up and no longer on offer")

        def work() -> dict[str, Any]:
            model = self._model_at(segment)
            watch = watch_memory()
            result = run_search(
                config, base=self.runtime.base, model=model, tokenizer=self.runtime.tokenizer, out=folder,
                make_trainer=self.runtime.make_trainer, progress=self.runtime.progress,
                data=self.offer.only(config.domains),
            )  # fmt: skip
            chosen = result.mixture
            predicted = dict(zip(result.law.metrics, map(float, result.law.predict(chosen.weights)[0]), strict=True))
            if not self.runtime.life.keep.probes:
                shutil.rmtree(folder / "probes", ignore_errors=True)
            return {
                "mixture": dict(chosen), "optimum": dict(result.verdict.optimum.mixture), "interval": dict(result.interval),
                "action": result.verdict.decision.action, "reason": result.verdict.decision.reason, "predicted": predicted,
                "baseline": dict(result.proposal.baseline), "notes": list(result.notes), "peak_memory": watch(),
                "amounts": result.ledger.cost.json(), "probes": len(result.table.probes),
                "share": result.json()["cost"]["search_share"],
            }  # fmt: skip

        return self._step("search", segment.start, work, intact=(folder / "mixture.json").exists)

    # -- training -----------------------------------------------------------------------------------------------

    def _empty_plan(self, domains: Sequence[str] | None = None) -> TrainingPlan:
        """The stream before its first row, going on where earlier stages ended; over all domains of the stage, or some."""
        names, rows, state = tuple(domains or self.stage.domains), self.rows, self.state
        same = {n for n in names if state.rows.get(n) == rows[n] and self.stage.config.replay == "remaining"}
        empty = np.empty(0, dtype=np.int64)
        drawn = tuple(state.cursors.get(n, 0) if n in same else 0 for n in names)
        plan = MixturePlan(names, empty.astype(np.int16), empty, tuple(rows[n] for n in names), self.seed, drawn)
        return TrainingPlan(
            plan=plan,
            dataset=MixtureDataset(self.offer.train, plan),
            arguments={},
            steps=0,
            row_tokens=0,
            supervised_tokens=0,
            shares={},
        )

    def _planned(self, mixture: Mixture, steps: int, previous: TrainingPlan, *, limited: bool = True) -> TrainingPlan:
        return plan_training(
            self.offer.train, mixture, steps=steps, arguments=self.stage.trainer, seed=self.seed, objective=self.offer.objective,
            max_epochs=epochs_allowed(self.stage) if limited else None, document_mask=self.stage.life.document_mask, previous=previous,
        )  # fmt: skip

    def _train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[dict[str, Any], TrainingPlan]:
        stage, step, length = self.stage, self.steps["train", segment.start], self.stage.life.sequence_length
        plan = self._planned(mixture, segment.stop - segment.start, plan)

        def work() -> dict[str, Any]:
            # The Trainer wants the whole stage's rows; those after this segment are never read.
            rest = stage.steps - segment.stop
            stream = self._planned(mixture, rest, plan, limited=False) if rest else plan
            self._check_room()
            started, watch, usage = time.perf_counter(), watch_memory(), Usage()
            shape = shape_from(self.state.shape)
            with self.runtime.progress.task(self._task("train"), segment.stop - segment.start) as advance:
                trainer = self._trained(segment, stream, usage, advance)
            write_log(self.folder / "training.csv", trainer.state.log_history, stage.step_tokens)
            trained = training_cost(plan, usage, self.offer.objective, shape, length)
            return {
                "mixture": dict(mixture), "key": step.key, "cursors": plan.plan.cursors(),
                "loss": last_loss(trainer.state.log_history), "shares": trained.shares,
                "supervised_tokens": trained.supervised_tokens,
                "amounts": trained.cost(time.perf_counter() - started).json(),
                "peak_memory": watch(),
            }  # fmt: skip

        def intact() -> bool:
            return self._is_finished() or any(
                at == segment.stop for at, _ in whole_checkpoints(self.checkpoints, step.key)
            )

        return self._step("train", segment.start, work, intact=intact), plan

    def _trained(self, segment: Segment, stream: TrainingPlan, usage: Usage, advance: Advance) -> Trainer:
        """Train the model through one segment, leaving a checkpoint of its last step."""
        stage, objective = self.stage, self.offer.objective
        return train_stretch(
            self._model_at(segment), stream.dataset, self._stretch(segment, stream.arguments), folder=self.checkpoints, seed=self.seed,
            make_trainer=objective.trainer(self.runtime.make_trainer, usage, shape_from(self.state.shape)), report=advance, usage=usage,
            held_out=watched_rows(self.runtime, stage, self.seed),
            optimizer_state=self.state.optimizer if stage.config.optimizer == "continued" else None,
        )  # fmt: skip

    def _stretch(self, segment: Segment, arguments: Mapping[str, Any]) -> Stretch:
        stage, life = self.stage, self.stage.life
        every = (
            max(1, stage.steps // 10)
            if life.checkpoint_every is None
            else round(life.checkpoint_every / stage.step_tokens)
        )
        shown = None if life.evaluation.every is None else max(1, round(life.evaluation.every / stage.step_tokens))
        return Stretch(
            steps=stage.steps, start=segment.start, stop=segment.stop, key=self.steps["train", segment.start].key,
            previous_key=self._key_before(segment), save_every=max(1, every), evaluate_every=shown, arguments=arguments,
        )  # fmt: skip

    # -- before and after ---------------------------------------------------------------------------------------

    def _measure(self, kind: Kind, model: Callable[[], Any]) -> dict[str, Any]:
        """Held-out losses and task scores of the full model."""
        step, life = self.steps[kind, None], self.stage.life
        names = list(step.settings["data"])

        def work() -> dict[str, Any]:
            started, watch = time.perf_counter(), watch_memory()
            loaded = model() if names else None
            losses, tokens = measure(loaded, self.runtime, names, self.seed)
            scores = task_scores(loaded, self.runtime, names)
            flops = tokens * shape_from(self.state.shape).forward(life.sequence_length)
            tasks = harness_results(loaded, self.runtime) if kind == "after" else []
            return {
                "losses": losses,
                "scores": scores,
                "tasks": tasks,
                "amounts": Cost.of(
                    "measuring", tokens=tokens, flops=flops, seconds=time.perf_counter() - started
                ).json(),
                "peak_memory": watch(),
            }

        return self._step(kind, None, work)
