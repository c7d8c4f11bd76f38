"""A segment's mixture by OP-Mix's own search, in a run folder inside the stage's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opmix.config import ModelConfig, SearchConfig
from opmix.lifecycle.available_domains import MODEL, decision_config
from opmix.lifecycle.records import StageDecision
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Segment
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.search import SearchResult, run_search
from opmix.settings import changed


@dataclass(frozen=True)
class SearchDecider:
    """Searches wherever a stage decides; see `Decider`."""

    at: StageFolder

    def decide(self, segment: Segment, old: Mixture | None, drawn: Mapping[str, int]) -> StageDecision:
        """See `Decider`."""
        folder = self.at.folder / f"search-{segment.start}"
        at, tokens = self.at, self.at.stage.tokens_in(segment)
        model = _recorded_model(at, segment)
        config = decision_config(at.stage, tokens, at.seed, old, model=model, rows=at.rows, drawn=drawn)

        def work() -> StageDecision:
            return _decision(self._searched(config, folder, segment))

        return self.at.step("search", segment.start, StageDecision, work, intact=(folder / "mixture.json").exists)

    def _searched(self, config: SearchConfig, folder: Path, segment: Segment) -> SearchResult:
        runtime = self.at.runtime
        result = run_search(
            config,
            base=runtime.base,
            model=self.at.model_at(segment),
            tokenizer=runtime.tokenizer,
            out=folder,
            make_trainer=runtime.make_trainer,
            progress=runtime.progress,
            data=self.at.data.only([*config.domains, *config.targets]),
        )
        if not runtime.life.keep.probes and runtime.store.ranks.first:
            shutil.rmtree(folder / "probes", ignore_errors=True)
        return result


def _decision(result: SearchResult) -> StageDecision:
    chosen, verdict = result.mixture, result.verdict
    losses = result.law.predict(chosen.weights)[0]
    return StageDecision(
        mixture=dict(chosen),
        optimum=dict(verdict.optimum.mixture),
        interval=dict(result.interval),
        action=verdict.decision.action,
        reason=verdict.decision.reason,
        predicted=dict(zip(result.law.metrics, map(float, losses), strict=True)),
        baseline=dict(result.proposal.baseline),
        notes=list(result.notes),
        amounts=result.ledger.cost,
        probes=result.table.kinds.count("probe"),
        share=result.json()["cost"]["search_share"],
    )


def _recorded_model(at: StageFolder, segment: Segment) -> ModelConfig:
    """Where the model of a decision can be found again (`opmix verify`), if it stays on disk."""
    life, state = at.runtime.life, at.state
    start = life.model or ModelConfig(name=MODEL)
    dtype = "float32" if start.dtype == "auto" else start.dtype  # as the life loads it, whatever the device
    told = changed(start, dtype=dtype, chat_template=life.chat_template)
    if segment.start:
        return changed(told, name=MODEL)
    if state.model is None:
        return told
    return changed(told, name=str(state.model.resolve()), tokenizer=None)
