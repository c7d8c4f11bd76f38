"""A contested stage whose mixture is decided while it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from opmix.comparison.bench import TrialBench, stints_json
from opmix.comparison.entrant import EntrantRun
from opmix.compute.memory import watch_memory
from opmix.lifecycle.measuring import last_loss, watched_rows, write_log
from opmix.lifecycle.runtime import shape_from
from opmix.lifecycle.stages import Segment
from opmix.lifecycle.steps import epochs_allowed
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.held_out import held_out
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.online_mixer import Stint
from opmix.training.checkpoints import whole_checkpoints
from opmix.training.matched import TrainingPlan, training_cost
from opmix.training.objectives import Usage
from opmix.training.online import Checkpoints, OnlineRun, train_online
from opmix.training.senses import Senses


@dataclass(kw_only=True)
class OnlineStage(EntrantRun):
    """The mixer's first stint is the decision's record; what it is told later is in the stage's checkpoints."""

    def _proposed(self, bench: TrialBench, steps: int) -> Proposal:
        state, stint = self.method.init(bench, steps)
        return Proposal(mixture=stint.mixture, evidence={"state": state, "steps": stint.steps})

    def _train(self, segment: Segment, mixture: Mixture, plan: TrainingPlan) -> tuple[dict[str, Any], TrainingPlan]:
        decided = self.runtime.store.found(
            self.steps["search", segment.start].name, self.steps["search", segment.start].key
        )
        assert decided is not None  # `run` decides before it trains
        first, step = Mixture.of(decided["mixture"]), self.steps["train", segment.start]
        start = decided["evidence"]["state"], Stint(first, int(decided["evidence"]["steps"]))

        def work() -> dict[str, Any]:
            self._check_room()
            started, watch, usage, shape = time.perf_counter(), watch_memory(), Usage(), shape_from(self.state.shape)
            stage, names = self.stage, first.names
            run = OnlineRun(
                mixer=self.method, start=start, rows={n: self.offer.train[n] for n in names}, steps=stage.steps,
                arguments=stage.trainer, seed=self.seed, senses=self._senses(names), objective=self.offer.objective,
                max_epochs=epochs_allowed(stage), document_mask=stage.life.document_mask, previous=self._empty_plan(names),
            )  # fmt: skip
            with self.runtime.progress.task(self._task("train"), stage.steps) as advance:
                result = train_online(
                    self._model_at(segment),
                    run,
                    folder=self.checkpoints,
                    checkpoints=self._kept(segment),
                    usage=usage,
                    report=advance,
                )
            write_log(self.folder / "training.csv", result.trainer.state.log_history, stage.step_tokens)
            trained = training_cost(result.plan, usage, self.offer.objective, shape, stage.life.sequence_length)
            return {
                "mixture": dict(Mixture.normalised(result.plan.shares).on(stage.domains)), "key": step.key,
                "cursors": result.plan.plan.cursors(), "loss": last_loss(result.trainer.state.log_history),
                "shares": result.plan.shares, "supervised_tokens": result.plan.supervised_tokens,
                "stints": stints_json(result.stints), "peak_memory": watch(),
                "amounts": trained.cost(time.perf_counter() - started).json(),
            }  # fmt: skip

        def intact() -> bool:
            return self._is_finished() or any(
                at == segment.stop for at, _ in whole_checkpoints(self.checkpoints, step.key)
            )

        return self._step("train", segment.start, work, intact=intact), plan

    def _kept(self, segment: Segment) -> Checkpoints:
        stretch = self._stretch(segment, {})
        return Checkpoints(
            key=stretch.key, save_every=stretch.save_every, evaluate_every=stretch.evaluate_every,
            watched=watched_rows(self.runtime, self.stage, self.seed),
            optimizer_state=self.state.optimizer if self.stage.config.optimizer == "continued" else None,
        )  # fmt: skip

    def _senses(self, names: tuple[str, ...]) -> Senses:
        valid = self.offer.only(names).rows("valid")
        sets = [self._held_out(n, rows) for n, rows in valid.items()]
        return Senses(
            evaluate=lambda model: evaluate(model, sets).losses[0], held_out=valid,
            evaluate_tokens=float(sum(h.input_ids.size for h in sets)),
        )  # fmt: skip

    def _held_out(self, name: str, rows: Any) -> HeldOut:
        life, given = self.stage.life, {**self.stage.life.proxies, **self.stage.config.proxies}
        return held_out(
            name, rows, num=int(given.get("eval_sequences", 64)), seed=self.seed, document_mask=life.document_mask
        )
