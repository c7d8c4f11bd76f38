"""`opmix compare`: shared stages once, then every method's own life; running it again resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.comparison.config import CompareConfig, checked_comparison
from opmix.comparison.entrants import Entrant, entrant_of, live_own, live_shared, shared_lives
from opmix.comparison.results import compare_file, write_tables
from opmix.comparison.steps import facts_file
from opmix.errors import ConfigError
from opmix.lifecycle.handed_out import Life, live_elsewhere
from opmix.lifecycle.life import refuse_stale
from opmix.lifecycle.limits import check_life
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.measuring import check_measured
from opmix.lifecycle.runtime import LifeRuntime, make_runtime
from opmix.lifecycle.steps import Step
from opmix.progress import Progress, Silent
from opmix.report import write_report
from opmix.results.comparison import CompareFile
from opmix.results.comparison_verdict import comparison_verdict
from opmix.results.life import StageEntry
from opmix.results.manifest import Manifest
from opmix.runs.progress_file import ProgressFile
from opmix.runs.ranks import refuse_ranks
from opmix.runs.store import RunStore
from opmix.settings import as_json, changed
from opmix.trackers import log_run
from opmix.trackers.told import of_comparison
from opmix.trackers.write import PROJECT, Log

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.training.factory import TrainerFactory


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """What a comparison came to."""

    folder: Path
    comparison: CompareFile

    @property
    def content(self) -> dict[str, Any]:
        """Of `compare.json`."""
        return self.comparison.json()

    def __repr__(self) -> str:
        rows = self.comparison.table
        best = [f"{row.entrant} {row.mean_loss.known:.4f}" for row in rows[:4]]
        more = f", and {len(rows) - 4} more" if len(rows) > 4 else ""
        return (
            f"{len(rows)} methods compared, reference {self.comparison.reference}, in {self.folder}\n"
            f"mean test loss, nats per token, best first: {', '.join(best)}{more}\n"
            f"{comparison_verdict(self.comparison)}"
        )

    def _repr_html_(self) -> str:
        from opmix.report.compare import comparison_html

        return comparison_html(self.comparison)

    def log_to(self, to: str | Sequence[str] | Log, *, project: str = PROJECT, folder: str | Path = "logs") -> None:
        """Log stages and table as one run, with the report; see `SearchResult.log_to` and `opmix.trackers.told.of_comparison`."""
        told = of_comparison(self.comparison, repr(self))
        log_run(told, to, project=project, folder=folder, report=self.folder / "report.html")

    def losses(self, entrant: str) -> dict[int, float]:
        """Mean test loss at the end by seed, nats per token.

        Raises:
            KeyError: No such entrant, or none of its seeds is finished.
        """
        return {int(seed): life.mean_loss for seed, life in self.comparison.entrants[entrant].seeds.items()}


def run_compare(
    config: CompareConfig,
    *,
    out: Path,
    base: Path | None = None,
    redo: bool = False,
    only: Iterable[str] = (),
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
) -> CompareResult:
    """Let every method live the life, or what is left of that.

    Args:
        config: The life, and who lives it.
        out: Run folder; what several entrants have in common is done once in it.
        base: Folder that relative paths are resolved against; None: the current one.
        redo: Do finished steps again whose inputs have changed; else that is an error.
        only: Entrants to run now; results of others that are finished stay in the tables. Empty: all.
        make_trainer: Replaces `opmix.training.factory.default_trainer`, except where a method brings its own.
        progress: Shows what is going on; None: silence.

    Raises:
        ConfigError: Settings that cannot hold, all at once.
        StoreError: The folder is held by another process, the disk is full, or finished steps have become stale.
        OpMixError: Whatever else stops it; running again goes on from there.
    """
    refuse_ranks("`opmix compare`", "start it without torchrun")
    wanted, config = _chosen(config, only), checked_comparison(config)
    with RunStore(out, "compare") as store:
        shown = ProgressFile(out / "progress.json", progress or Silent())
        shared = make_runtime(config.life, base or Path.cwd(), store, shown, make_trainer)
        entrants = [entrant_of(config, name, shared) for name in config.methods]
        for entrant in entrants:
            check_life(entrant.runtime.life, entrant.runtime.facts, entrant.runtime.likeness)
        check_measured(shared)
        if not redo:
            lives = [life for e in entrants if e.name in wanted for life in e.lives.values()]
            steps = {step.name: step for life in lives for step in life.steps}
            refuse_stale(store, list(steps.values()))
        shared.record_facts()
        for entrant in entrants:
            if entrant.runtime.facts is not shared.facts:
                entrant.runtime.record_facts(facts_file(entrant.name))
        Manifest.write(out, "compare", config=as_json(config))
        return _raced(config, shared, entrants, wanted)


def _raced(config: CompareConfig, shared: LifeRuntime, entrants: list[Entrant], wanted: list[str]) -> CompareResult:
    """Seed after seed, entrant after entrant; tables and report are written after each."""
    out, before = shared.folder, shared_lives(config, shared)
    _live_elsewhere(config, shared, before, [e for e in entrants if e.name in wanted])
    outcomes: dict[str, dict[int, list[StageEntry]]] = {e.name: {} for e in entrants}
    for seed in config.life.seeds:
        common, state = live_shared(config, shared, before[seed])
        for entrant in entrants:
            if entrant.name not in wanted and not _finished(shared, entrant.lives[seed].steps):
                continue
            outcomes[entrant.name][seed] = [*common, *live_own(config, entrant, seed, state)]
            lives = {n: found for n, found in outcomes.items() if found}
            made = compare_file(config, lives, shared.store)
            made.write(out)
            write_tables(out, made)
            write_report(out)
    shared.store.event("finished")
    return CompareResult(folder=out, comparison=made)


def _live_elsewhere(
    config: CompareConfig, shared: LifeRuntime, before: Mapping[int, Life], entrants: Sequence[Entrant]
) -> None:
    """Have other processes live what they can; what is on record afterwards is not lived again."""

    def told(life: LifecycleConfig) -> Mapping[str, Any]:
        content: Mapping[str, Any] = as_json(changed(config, life=life))
        return content

    own = [entrant.lives[seed] for seed in before for entrant in entrants]
    unfinished = {life.seed for life in own if not life.finished(shared.store)}
    first = [life for seed, life in before.items() if seed in unfinished]
    live_elsewhere(shared, own, "comparison", told, before=first)


def _chosen(config: CompareConfig, only: Iterable[str]) -> list[str]:
    from opmix.settings.loading import nearest

    names = list(only) or list(config.methods)
    if unknown := [n for n in names if n not in config.methods]:
        raise ConfigError([f"--only {n}: no such entrant{nearest(n, list(config.methods))}" for n in unknown])
    return names


def _finished(runtime: LifeRuntime, steps: Iterable[Step]) -> bool:
    return all(runtime.store.found(step.name, step.key) is not None for step in steps)
