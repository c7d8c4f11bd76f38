"""`opmix compare`: shared stages once, then every method's own life; running it again resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.comparison.config import CompareConfig, checked_comparison
from opmix.comparison.contender import Contender
from opmix.comparison.results import compare_file, write_tables
from opmix.comparison.steps import entrant_chain, facts_file, home_of
from opmix.errors import ConfigError
from opmix.lifecycle.life import live_stages, refuse_stale, start_of_life
from opmix.lifecycle.limits import check_life
from opmix.lifecycle.measuring import check_measured
from opmix.lifecycle.runtime import LifeRuntime, make_runtime
from opmix.lifecycle.stages import resolve
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
from opmix.settings import as_json
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


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    name: str
    runtime: LifeRuntime
    chains: Mapping[int, list[Step]]
    """By seed."""


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
        entrants = [_entrant(config, name, shared) for name in config.methods]
        for entrant in entrants:
            check_life(entrant.runtime.life, entrant.runtime.facts, entrant.runtime.likeness)
        check_measured(shared)
        if not redo:
            steps = {s.name: s for e in entrants if e.name in wanted for chain in e.chains.values() for s in chain}
            refuse_stale(store, list(steps.values()))
        shared.record_facts()
        for entrant in entrants:
            if entrant.runtime.facts is not shared.facts:
                entrant.runtime.record_facts(facts_file(entrant.name))
        Manifest.write(out, "compare", config=as_json(config))
        return _raced(config, shared, entrants, wanted)


def _raced(config: CompareConfig, shared: LifeRuntime, entrants: list[_Entrant], wanted: list[str]) -> CompareResult:
    """Seed after seed, entrant after entrant; tables and report are written after each."""
    out = shared.folder
    outcomes: dict[str, dict[int, list[StageEntry]]] = {e.name: {} for e in entrants}
    for seed in config.life.seeds:
        steps = entrants[0].chains[seed]
        stages = resolve(shared.life, shared.facts.stages)[: config.contested]
        state = start_of_life(shared, seed, steps[0])
        before, state = live_stages(shared, seed, stages, steps, state, home=home_of(seed))
        for entrant in entrants:
            if entrant.name not in wanted and not _finished(shared, entrant.chains[seed]):
                continue
            later = resolve(entrant.runtime.life, entrant.runtime.facts.stages)[config.contested :]
            own, _ = live_stages(
                entrant.runtime,
                seed,
                later,
                entrant.chains[seed],
                state,
                home=home_of(seed, entrant.name),
                contender=Contender(config.entry(entrant.name), config.method(entrant.name)),
            )
            outcomes[entrant.name][seed] = [*before, *own]
            lives = {n: found for n, found in outcomes.items() if found}
            made = compare_file(config, lives, shared.store)
            made.write(out)
            write_tables(out, made)
            write_report(out)
    shared.store.event("finished")
    return CompareResult(folder=out, comparison=made)


def _chosen(config: CompareConfig, only: Iterable[str]) -> list[str]:
    from opmix.settings.loading import nearest

    names = list(only) or list(config.methods)
    if unknown := [n for n in names if n not in config.methods]:
        raise ConfigError([f"--only {n}: no such entrant{nearest(n, list(config.methods))}" for n in unknown])
    return names


def _entrant(config: CompareConfig, name: str, shared: LifeRuntime) -> _Entrant:
    """An entrant with a runtime of its own where it learns from other rows than the others do."""
    life = config.life_of(name)
    if not config.learns_otherwise(name):
        runtime = replace(shared, life=life)
    else:
        try:
            runtime = make_runtime(life, shared.base, shared.store, shared.progress, shared.make_trainer)
        except ConfigError as error:
            raise ConfigError([f"methods.{name}: {problem}" for problem in error.problems]) from error
    return _Entrant(
        name=name,
        runtime=runtime,
        chains={seed: entrant_chain(config, name, runtime.facts, seed) for seed in config.life.seeds},
    )


def _finished(runtime: LifeRuntime, steps: Iterable[Step]) -> bool:
    return all(runtime.store.found(step.name, step.key) is not None for step in steps)
