"""`opmix status`: what of a run is done, stale (and why) or left, what it has cost, and what is still to come. Imports no torch."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from opmix.compute.cost import Cost
from opmix.compute.flops import ModelShape
from opmix.errors import StoreError
from opmix.lifecycle.available_domains import decision_config
from opmix.lifecycle.data_file import NAME as DATA
from opmix.lifecycle.data_file import DataFile
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.stages import resolve
from opmix.lifecycle.steps import DataFacts, StageRows, Step, chain, differences
from opmix.methods.registry import entry_of
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.estimate import estimate_search
from opmix.results.asked import AskedFile
from opmix.results.files import read_object
from opmix.results.manifest import Manifest
from opmix.runs.files import alive, parsed_json, regular
from opmix.runs.lock import lock_holder
from opmix.runs.store import RunStore
from opmix.runs.trace import Spent, read_spans
from opmix.settings.loading import validated

State = Literal["done", "stale", "running", "left"]


@dataclass(frozen=True, kw_only=True)
class StepStatus:
    """One step of a run."""

    name: str
    kind: str
    state: State
    why: tuple[str, ...] = ()
    """Of a stale step."""
    cost: Cost = field(default_factory=Cost)
    """Spent."""
    planned: Mapping[str, float] = field(default_factory=dict)
    """FLOPs still to come by purpose; empty until the model's shape is known."""
    peak_memory: int | None = None
    finished: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run folder as it is now."""

    folder: Path
    steps: tuple[StepStatus, ...]
    holder: int | None
    """Process that works on it."""
    task: Mapping[str, Any] | None
    """What that process is doing: task, done, total."""
    changed: tuple[str, ...]
    """Domains whose files have changed since they were read."""
    spent_on: Spent = field(default_factory=lambda: Spent({}))
    """Where the time went, as the run's own trace says; empty where there is none."""

    @property
    def spent(self) -> Cost:
        """Of the finished steps."""
        return Cost.sum(step.cost for step in self.steps if step.state == "done")

    @property
    def flops_left(self) -> dict[str, float]:
        """By purpose."""
        return dict(Cost.sum(Cost(flops=step.planned) for step in self.steps if step.state != "done").flops)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None where nothing of the kind has been done yet."""
        spent, total = self.spent, 0.0
        for purpose, flops in self.flops_left.items():
            done, took = spent.flops.get(purpose, 0.0), spent.seconds.get(purpose, 0.0)
            if not done:
                if "training" not in spent.seconds:
                    return None
                done, took = spent.flops["training"], spent.seconds["training"]
            total += flops * took / done
        return total


def run_status(folder: Path, config: LifecycleConfig | None = None) -> RunStatus:
    """The state of a life; with `config` against another configuration than the one it was run with.

    Raises:
        StoreError: Not a folder of `opmix run`.
    """
    config = config or validated(LifecycleConfig, recorded_config(folder), where=str(folder / "manifest.json"))
    facts, changed = recorded_facts(folder, config)
    return status_of(folder, [s for seed in config.seeds for s in chain(config, facts, seed)], changed)


def decision_status(folder: Path) -> RunStatus:
    """The state of a folder of `opmix search`, `fit` or `demo`: what is recorded, and whether its result is there.

    Raises:
        StoreError: No run of opmix.
    """
    place = folder / "steps"
    names = [p.relative_to(place).with_suffix("").as_posix() for p in place.glob("**/*.json")]
    result = folder / "mixture.json"
    if not names and not any(p.is_file() for p in (result, folder / "manifest.json", folder / "lock")):
        raise StoreError(f"{folder}: no run of opmix; expected the --out folder of a verb, such as `opmix run`")
    store, found = RunStore(folder), status_of(folder, [])
    records = {name: record for name in names if (record := store.record(name)) is not None}
    done = [
        StepStatus(name=name, kind="step", state="done", finished=str(record.get("finished", "")))
        for name, record in sorted(records.items(), key=lambda item: str(item[1].get("finished")))
    ]
    asked = AskedFile.find(folder)
    done += [
        StepStatus(name=f"run {run.name}", kind="run", state="done" if run.told else "left")
        for run in (asked.runs if asked is not None else ())
    ]
    left: State = "done" if result.is_file() else "running" if found.holder is not None else "left"
    return replace(found, steps=(*done, StepStatus(name="decision", kind="decision", state=left)))


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
    store, holder = RunStore(folder), _holder(folder)
    running = _running(folder) if holder is not None else None
    task = (
        read_object(folder / "progress.json") if holder is not None and (folder / "progress.json").is_file() else None
    )
    return RunStatus(
        folder=folder,
        steps=tuple(_statuses(store, steps, running)),
        holder=holder,
        task=task,
        changed=changed,
        spent_on=Spent.of(read_spans(folder)),
    )


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


def _statuses(store: RunStore, steps: Sequence[Step], running: str | None) -> Iterator[StepStatus]:
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
        state: State = "running" if step.name == running else ("stale" if record is not None else "left")
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


def _holder(folder: Path) -> int | None:
    found = lock_holder(folder)
    return found[0] if found is not None and (found[1] != socket.gethostname() or alive(found[0])) else None


def _running(folder: Path) -> str | None:
    """The step that was begun last and has not ended."""
    try:
        lines = regular(folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = parsed_json(line)
            if event["event"] in ("begin", "end"):
                return str(event["step"]) if event["event"] == "begin" else None
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # cut off: the process died, or is still writing it
    return None
