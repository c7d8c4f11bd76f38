"""`opmix status`: what of a run is done, stale (and why) or left, what it has cost, and what is still to come. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opmix.compute.cost import Cost
from opmix.compute.flops import ModelShape
from opmix.errors import StoreError
from opmix.lifecycle.available_domains import decision_config
from opmix.lifecycle.data_file import NAME as DATA
from opmix.lifecycle.data_file import DataFile
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.run_status import RunStatus, State, StepStatus, status_now
from opmix.lifecycle.stages import resolve
from opmix.lifecycle.steps import DataFacts, StageRows, Step, chain, differences
from opmix.methods.registry import entry_of
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.estimate import estimate_search
from opmix.results.manifest import Manifest
from opmix.runs.files import parsed_json, regular
from opmix.runs.store import RunStore
from opmix.settings.loading import validated


def run_status(folder: Path, config: LifecycleConfig | None = None) -> RunStatus:
    """The state of a life; with `config` against another configuration than the one it was run with.

    Raises:
        StoreError: Not a folder of `opmix run`.
    """
    config = config or validated(LifecycleConfig, recorded_config(folder), where=str(folder / "manifest.json"))
    facts, changed = recorded_facts(folder, config)
    return status_of(folder, [s for seed in config.seeds for s in chain(config, facts, seed)], changed)


def recorded_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run folder was last run with, unchecked.

    Raises:
        StoreError: Not a folder of `opmix run` or `opmix compare`, or damaged.
    """
    DataFile.read(folder)
    manifest = Manifest.read(folder, "`opmix run`")
    if manifest.config is None:
        raise StoreError(f"{folder / 'manifest.json'}: damaged: no config; run `opmix run` again to rewrite it")
    return dict(manifest.config)


def recorded_facts(folder: Path, config: LifecycleConfig, file: str = DATA) -> tuple[DataFacts, tuple[str, ...]]:
    """What a run recorded of its data, as it stands to them now, and the domains whose files have changed since.

    Raises:
        StoreError: Not a folder of `opmix run`, or the file is damaged.
    """
    recorded = DataFile.read(folder, file)
    kept = recorded.facts
    missing = [n for n in config.domains if n not in kept.fingerprints]
    unread = {n: f"{n} is not read yet" for n in (*missing, *config.targets)}
    changed = tuple(n for n in recorded.changed() if n in (*config.domains, *config.targets))
    known_files = {n: "changed on disk" if n in changed else f for n, f in kept.fingerprints.items()}
    facts = replace(
        kept,
        rows={**dict.fromkeys(missing, 1), **kept.rows},
        fingerprints={**unread, **known_files},
        stages=_offers(config, recorded),
    )
    return facts, changed


def status_of(folder: Path, steps: Sequence[Step], changed: tuple[str, ...] = ()) -> RunStatus:
    """The state of some steps of a run folder, in their order."""
    now = status_now(folder)
    running = set() if now.holder is None else _running(folder, now.holder)
    return replace(now, steps=tuple(_statuses(RunStore(folder), steps, running)), changed=changed)


def _offers(config: LifecycleConfig, recorded: DataFile) -> tuple[StageRows, ...]:
    """Rows of every stage as they were recorded; a stage that is new or changed is told from the domains."""
    kept, offers = recorded.facts, []
    for stage in resolve(config):
        found = kept.stages[stage.index] if stage.index < len(kept.stages) else None
        if found is None or set(found.rows) != set(stage.domains):
            rows = {n: kept.rows.get(n, 1) for n in stage.domains}
            worth = {n: recorded.tokens.get(n, config.search.sequence_length) / rows[n] for n in stage.domains}
            found = StageRows(rows=rows, worth=worth, objective=stage.objective)
        offers.append(found)
    return tuple(offers)


def _statuses(store: RunStore, steps: Sequence[Step], running: set[str]) -> Iterator[StepStatus]:
    shape: ModelShape | None = None
    for step in steps:
        record = store.record(step.name)
        if record is not None and step.kind == "start":
            kept = record["result"]["shape"]
            shape = ModelShape(**{n: int(kept[n]) for n in ("matmul_parameters", "num_layers", "attention_width")})
        if record is not None and record["fingerprint"] == step.key:
            result = record["result"]
            yield StepStatus(
                name=step.name,
                kind=step.kind,
                state="done",
                cost=Cost.read(result),
                peak_memory=result.get("peak_memory"),
                finished=record.get("finished"),
            )
            continue
        why = tuple(differences(record["inputs"], step.inputs)) if record is not None else ()
        state: State = "running" if step.name in running else ("stale" if record is not None else "left")
        yield StepStatus(name=step.name, kind=step.kind, state=state, why=why, planned=planned_flops(step, shape))


def planned_flops(step: Step, shape: ModelShape | None) -> dict[str, float]:
    """FLOPs that a step will take, by kind of work; empty where nothing tells."""
    if shape is None or step.stage is None:
        return {}
    stage, length = step.stage, step.stage.life.search.sequence_length
    if step.kind == "train" and step.segment is not None:
        return {"training": stage.tokens_of(step.segment.stop - step.segment.start) * shape.train(length)}
    if step.kind == "search" and step.segment is not None:
        if "method" in step.settings and not entry_of(step.settings["method"]["name"]).own_search:
            return {}  # what another method will ask for is its own affair
        kept = [d for d in stage.before if d in stage.domains]
        old = Mixture.uniform(kept) if kept and not (stage.index == 0 and step.segment.start) else None
        config = decision_config(stage, stage.tokens_in(step.segment), step.seed, old)
        return dict(estimate_search(config, old).cost(shape, length).flops)
    if step.kind in ("before", "after"):
        rows = 2 * len(step.settings["data"]) * stage.life.evaluation.sequences
        return {"measuring": rows * length * shape.forward(length)}
    return {}


def _running(folder: Path, holder: int) -> set[str]:
    """The steps that were begun and have not ended: the last one, or all since the holder handed lives to other processes."""
    try:
        lines = regular(folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    last: set[str] | None = None
    ended: set[str] = set()
    begun: set[str] = set()
    for line in reversed(lines):
        try:
            event = parsed_json(line)
            kind = event["event"]
            if kind == "handed_out":
                if event["process"] == holder:
                    return begun
                break  # by a process that is gone
            if kind not in ("begin", "end"):
                continue
            step = str(event["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # cut off: the process died, or is still writing it
        (ended if kind == "end" or step in ended else begun).add(step)
        last = begun.copy() if last is None else last
    return last or set()
