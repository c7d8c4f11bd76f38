"""`opmix run`: a model's whole life, stage after stage, seed after seed; running it again resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.compute.memory import watch_memory
from opmix.errors import ConfigError, StoreError
from opmix.lifecycle.handed_out import Life, live_elsewhere
from opmix.lifecycle.limits import check_life
from opmix.lifecycle.loading import LifecycleConfig, checked_trainers
from opmix.lifecycle.measuring import check_measured
from opmix.lifecycle.records import StageState
from opmix.lifecycle.run_stage import Decider, StageTrainer, run_stage
from opmix.lifecycle.runtime import LifeRuntime, make_runtime, shape_of
from opmix.lifecycle.search_decider import SearchDecider
from opmix.lifecycle.segment_training import SegmentTraining, train_plainly
from opmix.lifecycle.stage_folder import StageFolder
from opmix.lifecycle.stages import Stage, resolve
from opmix.lifecycle.steps import Step, chain, differences
from opmix.lifecycle.tables import stage_entry, write_tables
from opmix.mixing.mixture import Mixture
from opmix.progress import Progress, Silent
from opmix.report import write_report
from opmix.results.life import LifeFile, StageEntry
from opmix.results.manifest import Manifest
from opmix.runs.progress_file import ProgressFile
from opmix.runs.ranks import ranks_here, refuse_ranks
from opmix.runs.store import RunStore
from opmix.settings import as_json
from opmix.trackers import log_run
from opmix.trackers.told import of_life
from opmix.trackers.write import PROJECT, Log

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.training.factory import TrainerFactory


@dataclass(frozen=True, kw_only=True)
class LifeResult:
    """What a life came to."""

    folder: Path
    life: LifeFile

    @property
    def content(self) -> dict[str, Any]:
        """Of `life.json`: per seed and stage mixture, losses, forgetting and cost; means and deviations over seeds."""
        return self.life.json()

    def __repr__(self) -> str:
        stages, seeds = self.life.stages, self.life.seeds
        last, forgotten = stages[-1], [x.mean for s in stages for x in s.forgetting.values() if x.mean is not None]
        top = sorted(((name, share.mean or 0.0) for name, share in last.mixture.items()), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:.3f}" for name, share in top[:8])
        lines = [
            f"a life of {len(stages)} stages, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, in {self.folder}",
            f"mean test loss at the end: {last.mean_test_loss.mean:.4f} nats per token",
            f"last mixture: {shares}" + (f", and {len(top) - 8} smaller" if len(top) > 8 else ""),
            f"most forgotten in a stage: {max(forgotten, default=0.0):+.4f} nats",
            f"model: {self.model()}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from opmix.report.notebook import life_html

        return life_html(self.life)

    def log_to(self, to: str | Sequence[str] | Log, *, project: str = PROJECT, folder: str | Path = "logs") -> None:
        """Log every stage as a step of one run, with the report; see `SearchResult.log_to` and `opmix.trackers.told.of_life`."""
        told = of_life(self.life, repr(self))
        log_run(told, to, project=project, folder=folder, report=self.folder / "report.html")

    def model(self, seed: int | None = None) -> Path:
        """Folder of the last stage's model; `AutoModelForCausalLM.from_pretrained` loads it."""
        lives = self.life.seeds
        return self.folder / lives[str(seed) if seed is not None else next(iter(lives))].model


def run_life(
    config: LifecycleConfig,
    *,
    out: Path,
    base: Path | None = None,
    redo: bool = False,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
) -> LifeResult:
    """Live a checked lifecycle, or what is left of it.

    Args:
        config: The life.
        out: Run folder.
        base: Folder that relative paths are resolved against; None: the current one.
        redo: Do finished steps again whose inputs have changed; else that is an error, for their results would be lost.
        make_trainer: Replaces `opmix.training.factory.default_trainer`, for probes and full runs alike.
        progress: Shows what is going on; None: silence.

    Raises:
        ConfigError: Settings that cannot hold, all at once.
        StoreError: The folder is held by another process, the disk is full, or finished steps have become stale.
        OpMixError: Whatever else stops it; running again goes on from there.
    """
    from opmix.scores import extractor_of
    from opmix.scores.harness import task_manager

    config = checked_trainers(config)
    for task in config.evaluation.tasks.values():
        extractor_of(task.extractor)  # an unknown one is said now
    if (wanted := config.evaluation.harness) is not None:
        place = base or Path.cwd()
        task_manager(wanted.tasks, None if wanted.include_path is None else place / wanted.include_path)
        refuse_ranks("lm-evaluation-harness", "leave out evaluation.harness, or start without torchrun")
    ranks = ranks_here()
    with RunStore(out, "run") as store:
        progress = ProgressFile(out / "progress.json", progress or Silent()) if ranks.first else Silent()
        runtime = make_runtime(config, base or Path.cwd(), store, progress, make_trainer)
        check_life(config, runtime.facts, runtime.likeness)
        check_measured(runtime)
        seeds = seeds_of(runtime)
        if not redo:
            refuse_stale(store, [step for life in seeds for step in life.steps])
        runtime.record_facts()  # not earlier: a run that is refused changes nothing
        Manifest.write(out, "run", config=as_json(config))
        live_elsewhere(runtime, seeds, "life", as_json)
        life = LifeFile.of({one.seed: live_seed(runtime, one) for one in seeds})
        with ranks.agreed():
            if ranks.first:
                life.write(out)
                write_tables(out, life)
                write_report(out)
        store.event("finished")
        return LifeResult(folder=out, life=life)


def seeds_of(runtime: LifeRuntime) -> list[Life]:
    """The life of every seed."""
    life, facts = runtime.life, runtime.facts
    return [Life(home=f"seed-{seed}", seed=seed, steps=chain(life, facts, seed)) for seed in dict.fromkeys(life.seeds)]


def live_seed(runtime: LifeRuntime, life: Life) -> list[StageEntry]:
    """Live one seed, or what is left of it: the stages' outcomes as `life.json` keeps them."""
    stages, state = resolve(runtime.life, runtime.facts.stages), start_of_life(runtime, life.seed, life.steps[0])
    return live_stages(runtime, life.seed, stages, life.steps, state, home=life.home)[0]


Contender = Callable[[StageFolder], tuple[Decider, StageTrainer]]
"""Who decides and who trains in a stage."""


def search_and_train(at: StageFolder) -> tuple[Decider, StageTrainer]:
    """OP-Mix's search, then training on what it proposes."""
    return SearchDecider(at), SegmentTraining(at, train_plainly)


def live_stages(
    runtime: LifeRuntime,
    seed: int,
    stages: Sequence[Stage],
    steps: Sequence[Step],
    state: StageState,
    *,
    home: str,
    contender: Contender = search_and_train,
) -> tuple[list[StageEntry], StageState]:
    """Live some stages in order, or what is left of them.

    Args:
        runtime: What they share.
        seed: Of this life.
        stages: To be lived.
        steps: Of the chain; those of other stages are passed over.
        state: What the first of the stages starts from.
        home: Folder of this life in the run folder.
        contender: Decides and trains.

    Returns:
        The stages' outcomes as `life.json` keeps them, and what a further stage would start from.
    """
    outcomes, wanted = [], _models_needed(runtime, home, stages, steps)
    for stage in stages:
        mine = {
            (s.kind, s.segment.start if s.segment is not None else None): s
            for s in steps
            if s.stage is not None and s.stage.index == stage.index
        }
        if any(runtime.store.found(s.name, s.key) is None for s in mine.values()):
            runtime.progress.note(
                f"{home}, stage {stage.index + 1} of {len(runtime.life.stages)}: {stage.config.name}, {stage.tokens:,} "
                "tokens "
                f"on {', '.join(stage.domains)}"
            )
        needed = stage.index in wanted
        at = StageFolder(runtime=runtime, stage=stage, seed=seed, steps=mine, state=state, needed=needed, home=home)
        outcome, state = run_stage(at, *contender(at))
        outcomes.append(stage_entry(stage, home, outcome))
    return outcomes, state


def _models_needed(runtime: LifeRuntime, home: str, stages: Sequence[Stage], steps: Sequence[Step]) -> set[int]:
    """Stages whose models must be on disk: the last one, those not finished, and those that a stage is to start from (again)."""
    needed: set[int] = set()
    follower_starts = True
    for stage in reversed(stages):
        mine = [s for s in steps if s.stage is not None and s.stage.index == stage.index]
        finished = all(runtime.store.found(s.name, s.key) is not None for s in mine)
        there = (runtime.folder / home / stage.label / "model" / "config.json").exists()
        if follower_starts or not finished:
            needed.add(stage.index)
        follower_starts = not finished or (follower_starts and not there)
    return needed


def start_of_life(runtime: LifeRuntime, seed: int, step: Step) -> StageState:
    """The model before its first stage: made or loaded once, to know its shape and that it is what it was."""
    from opmix.models.layers import model_fingerprint
    from opmix.models.load import check_vocabulary

    def work() -> dict[str, Any]:
        watch = watch_memory()
        model = runtime.start_model(seed, runtime.whole_place)
        check_vocabulary(runtime.tokenizer, model)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and runtime.life.search.sequence_length > limit:
            raise ConfigError(
                f"sequence_length: {runtime.life.search.sequence_length}; the model takes at most {limit} tokens"
            )
        kind = type(model).__name__
        return {
            "shape": shape_of(model),
            "fingerprint": model_fingerprint(model),
            "class": kind,
            "peak_memory": watch(),
        }

    result, _ = runtime.store.step(step.name, step.inputs, work)
    old = runtime.life.old_mixture
    return StageState(
        model=None,
        model_key=result["fingerprint"],
        shape=result["shape"],
        mixture=None if old is None else Mixture.of(old),
    )


def refuse_stale(store: RunStore, steps: Sequence[Step]) -> None:
    """Finished work is not thrown away unasked.

    Raises:
        StoreError: Inputs of finished steps have changed; says which steps and why.
    """
    stale = []
    for step in steps:
        record = store.record(step.name)
        if record is not None and record.get("fingerprint") != step.key:
            stale.append(f"{step.name}: {'; '.join(differences(record['inputs'], step.inputs)[:4])}")
    if stale:
        shown = "".join(f"\n  - {line}" for line in stale[:12]) + (
            f"\n  ... and {len(stale) - 12} more" if len(stale) > 12 else ""
        )
        raise StoreError(
            f"{store.folder}: {len(stale)} finished steps were done with other inputs{shown}\n"
            "put the inputs back, use another --out, or add --redo to do these steps again (their results are then "
            "replaced)"
        )
