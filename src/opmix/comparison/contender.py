"""A contender of a comparison: who decides a stage's mixture, and who trains on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from opmix.comparison.online import OnlineTraining, first_segment
from opmix.comparison.trainers import MergedTraining, train_continually, trial_runner
from opmix.lifecycle.available_domains import decision_config
from opmix.lifecycle.life import search_and_train
from opmix.lifecycle.records import StageDecision
from opmix.lifecycle.run_stage import Decider, StageTrainer
from opmix.lifecycle.search_decider import SearchDecider
from opmix.lifecycle.segment_training import SegmentTraining, train_plainly
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment
from opmix.methods.registry import Entry
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.trial_runner import TrialRunner
from opmix.protocols.mixing_method import Proposal
from opmix.runs.files import write_json
from opmix.runs.store import RunStore


@dataclass(frozen=True)
class Contender:
    """One method of a comparison; called with a stage, returns who decides and who trains."""

    entry: Entry
    method: Any

    def __call__(self, at: StageFolder) -> tuple[Decider, StageTrainer]:
        """Return the pair; a stage with a fixed mixture is trained plainly, by whomever."""
        if not at.stage.searched:
            return search_and_train(at)
        if self.entry.training == "restarted":
            at = replace(at, state=replace(at.state, model=None, model_key=None, cursors={}, rows={}))
        decider = SearchDecider(at) if self.entry.own_search else ProposalDecider(at, self.entry, self.method)
        return decider, self._trainer(at)

    def _trainer(self, at: StageFolder) -> StageTrainer:
        if self.entry.training == "online":
            return OnlineTraining(at, self.method)
        if self.entry.training == "merged":
            return MergedTraining(at)
        if self.entry.training == "continual":
            return SegmentTraining(at, partial(train_continually, self.method))
        return SegmentTraining(at, train_plainly)


@dataclass(frozen=True)
class ProposalDecider:
    """The mixture that a method of the comparison proposes; of an online mixer, its first one."""

    at: StageFolder
    entry: Entry
    method: Any

    def decide(self, segment: Segment, old: Mixture | None, drawn: Mapping[str, int]) -> StageDecision:
        """See `Decider`."""
        at, file = self.at, self.at.folder / f"search-{segment.start}" / "mixture.json"
        config = decision_config(at.stage, at.stage.tokens_in(segment), at.seed, old, rows=at.rows, drawn=drawn)

        def work() -> StageDecision:
            with RunStore(file.parent) as store:
                trials = trial_runner(at, config, store, segment)
                proposal = self._proposal(trials, segment.stop - segment.start)
                content = {"method": self.entry.name, "mixture": dict(proposal.mixture), "evidence": proposal.evidence}
                write_json(file, {"kind": "proposal", **content})
            return self._decision(proposal, trials)

        return at.step("search", segment.start, StageDecision, work, intact=file.exists)

    def _proposal(self, trials: TrialRunner, steps: int) -> Proposal:
        if self.entry.family == "online":
            return first_segment(self.method, trials, steps)
        proposal: Proposal = self.method.propose(trials)
        return proposal

    def _decision(self, proposal: Proposal, trials: TrialRunner) -> StageDecision:
        chosen, spent = dict(proposal.mixture.on(trials.problem.domains)), trials.context.ledger.cost
        return StageDecision(
            mixture=chosen,
            optimum=chosen,
            interval={},
            action="move",
            reason=self.entry.line,
            predicted={},
            baseline={},
            notes=trials.context.prepared.notes(),
            amounts=spent,
            probes=0,
            share=spent.total("flops") / trials.context.training_flops,
            evidence=proposal.evidence,
        )
