"""A life as a chain of steps whose keys follow from configuration and data alone. Imports no torch.

A key covers a step's own settings and the keys of the steps it follows from, so what has become stale, and why, is known without
loading or training anything: `opmix status` and `opmix run` read the same chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opmix.config import SearchConfig
from opmix.lifecycle.available_domains import decision_config
from opmix.lifecycle.config import LifeSettings
from opmix.lifecycle.stages import Segment, Stage, resolve
from opmix.runs.store import fingerprint
from opmix.settings import as_json
from opmix.training.settings import ObjectiveName

HARMLESS = {
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "disable_tqdm",
    "log_level",
    "log_on_each_node",
    "logging_dir",
    "logging_first_step",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "include_num_input_tokens_seen",
    "fsdp",
    "fsdp_config",
    "micro_batch",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
}
"""Trainer arguments that change what is shown or how fast, not what is learned: they make nothing stale."""

Kind = Literal["start", "before", "search", "train", "model", "after"]


@dataclass(frozen=True)
class StageRows:
    """The training rows of one stage."""

    rows: Mapping[str, int]
    """By domain: how many."""
    worth: Mapping[str, float]
    """By domain: mean supervised tokens of one."""
    objective: ObjectiveName


@dataclass(frozen=True)
class DataFacts:
    """What the chain needs to know of the data."""

    tokenizer: str
    """Fingerprint."""
    fingerprints: Mapping[str, str]
    """By domain: sources, splits, tokenizer, and how conversations become rows."""
    rows: Mapping[str, int]
    """By domain: training sequences."""
    model: str = ""
    """Signature of the starting checkpoint's files; empty: from scratch."""
    stages: tuple[StageRows, ...] = ()
    """Empty: text, the same in all stages."""

    def of(self, domains: tuple[str, ...]) -> dict[str, str]:
        """Fingerprints of some domains."""
        return {name: self.fingerprints[name] for name in domains}

    def rows_of(self, stage: Stage) -> Mapping[str, int]:
        """Training rows of a stage's domains."""
        return self.stages[stage.index].rows if self.stages else self.rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """One record of the run folder."""

    name: str
    kind: Kind
    seed: int
    stage: Stage | None
    segment: Segment | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    """Keys of the steps it follows from, by name."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the record keeps, and the key is made of."""
        return {**self.settings, "after": dict(self.after)}

    @property
    def key(self) -> str:
        """Fingerprint of the inputs."""
        return fingerprint(self.inputs)


def chain(life: LifeSettings, data: DataFacts, seed: int) -> list[Step]:
    """The steps of one seed, in order."""
    home = f"seed-{seed}"
    settings: dict[str, Any] = {
        "architecture": life.architecture,
        "checkpoint": data.model,
        "tokenizer": data.tokenizer,
    }
    if life.architecture is not None:
        settings["seed"] = seed
    steps = [Step(name=f"{home}/start", kind="start", seed=seed, stage=None, settings=settings)]
    model = steps[0]
    for stage in resolve(life, data.stages):
        steps += _stage_steps(stage, data, seed, f"{home}/{stage.label}", model)
        model = next(step for step in reversed(steps) if step.kind == "model")
    return steps


def _stage_steps(stage: Stage, data: DataFacts, seed: int, home: str, base: Step) -> Iterator[Step]:
    targets = tuple(stage.life.targets)
    # Nothing has been measured before the first stage; later ones begin where the stage before was measured.
    unmeasured = (*stage.seen, *targets) if stage.index == 0 else stage.new
    yield Step(
        name=f"{home}/before",
        kind="before",
        seed=seed,
        stage=stage,
        settings={**_measuring(stage, seed, unmeasured), "data": data.of(unmeasured)},
        after={base.name: base.key},
    )
    reached = base
    for segment in stage.segments:
        follows = [reached]
        if segment.decided:
            follows.append(_search_step(stage, segment, data, seed, home, reached))
            yield follows[-1]
        reached = _train_step(stage, segment, data, seed, home, follows)
        yield reached
    model = Step(name=f"{home}/model", kind="model", seed=seed, stage=stage, after={reached.name: reached.key})
    yield model
    measured = _measuring(stage, seed, stage.seen)
    yield Step(
        name=f"{home}/after",
        kind="after",
        seed=seed,
        stage=stage,
        settings={**measured, **_harness(stage.life), "data": data.of((*stage.seen, *targets))},
        after={model.name: model.key},
    )


def _search_step(stage: Stage, segment: Segment, data: DataFacts, seed: int, home: str, reached: Step) -> Step:
    search = decision_config(stage, stage.tokens_in(segment), seed)
    return Step(
        name=f"{home}/search-{segment.start}",
        kind="search",
        seed=seed,
        stage=stage,
        segment=segment,
        settings={
            "search": _search_settings(search),
            "replay": stage.config.replay,
            "max_epochs": stage.epochs_allowed,
            "data": data.of((*stage.domains, *stage.settings.targets)),
        },
        after={reached.name: reached.key},
    )


def _train_step(stage: Stage, segment: Segment, data: DataFacts, seed: int, home: str, follows: Sequence[Step]) -> Step:
    settled = segment.decided or not stage.searched
    return Step(
        name=f"{home}/train-{segment.stop}",
        kind="train",
        seed=seed,
        stage=stage,
        segment=segment,
        settings={
            **_reading(stage, seed),
            "mixture": stage.config.mixture if settled else stage.config.prefix_mixture,
            "trainer": _telling(stage.trainer),
            "steps": [segment.start, segment.stop, stage.steps],
            "rows_per_step": stage.rows_per_step,
            "replay": stage.config.replay,
            "optimizer": stage.config.optimizer,
            "max_epochs": stage.epochs_allowed,
            "data": data.of(stage.domains),
            **_objective(stage),
        },
        after={step.name: step.key for step in follows},
    )


def _reading(stage: Stage, seed: int) -> dict[str, Any]:
    """How text becomes rows."""
    search = stage.life.search
    return {"seed": seed, "sequence_length": search.sequence_length, "document_mask": search.document_mask}


def _measuring(stage: Stage, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """What losses are measured on, and the task scores that are taken of some domains."""
    told = stage.life.evaluation
    chosen = {name: as_json(task) for name, task in told.tasks.items() if name in names}
    return {**_reading(stage, seed), "sequences": told.sequences, **({"tasks": chosen} if chosen else {})}


def _harness(life: LifeSettings) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness, where there are any."""
    chosen = life.evaluation.harness
    return {} if chosen is None else {"harness": {k: v for k, v in as_json(chosen).items() if k != "include_path"}}


def _objective(stage: Stage) -> dict[str, Any]:
    """What is learned, where it is not simply every token, and what else draws random numbers on the way."""
    every = stage.life.evaluation.every
    watched = {} if every is None else {"evaluate_every": every}
    if stage.objective != "sdft":
        return watched if stage.objective == "causal_lm" else {**watched, "objective": stage.objective}
    return {**watched, "objective": "sdft", "sdft": as_json(stage.settings.sdft)}


_ADAPTIVE = ("adaptive", "tolerance", "first_look")
"""Settings of `probes` that count only where the first is on."""


def _search_settings(search: SearchConfig) -> dict[str, Any]:
    """What a decision depends on: not where files lie, nor how many processes read them or do the work, probes together or not."""
    aside = ("model", "old_mixture", "executor", "num_proc", "cache_dir", "domains", "targets")
    content = {key: value for key, value in as_json(search).items() if key not in aside}
    if search.targets:
        content["targets"] = {n: {"weight": t.weight, "family": t.family} for n, t in search.targets.items()}
    if content["objective"] != "sdft":
        content.pop("sdft")
    content["decision"] = {**content["decision"], "confidence": search.rule.confidence}  # a number in earlier runs
    if search.solve.unit == "nats":  # runs from before there was another
        content["solve"] = {k: v for k, v in content["solve"].items() if k != "unit"}
    unasked = ("at_once", *(() if search.adaptive else _ADAPTIVE))
    content["probes"] = {k: v for k, v in content["probes"].items() if k not in unasked}
    return {**content, "trainer": _telling(content["trainer"])}


def _telling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in HARMLESS}


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a record is stale: changed settings by dotted path, then the steps it follows from."""
    changed = []
    for path in sorted({*_flat(recorded), *_flat(now)} - {()}, key=str):
        old, new = _flat(recorded).get(path), _flat(now).get(path)
        if old == new or (old in (None, {}) and new in (None, {})):
            continue  # an empty block is told of by what came into it, or left it
        if path[0] == "after":
            changed.append(f"follows {path[1]}")
        elif path[0] == "data":
            what = "changed" if old and new else ("is new" if new else "is gone")
            changed.append(f"data of {path[1]} {what}")
        else:
            changed.append(f"{'.'.join(path)}: {_short(old)} -> {_short(new)}")
    return sorted(changed, key=lambda text: text.startswith("follows "))


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, inner in value.items() for k, v in _flat(inner, (*path, str(name))).items()}
    return {path: value}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
