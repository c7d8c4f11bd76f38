"""`lifecycle.yaml` read and checked, before any of it is lived. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opmix.errors import ConfigError
from opmix.lifecycle.config import OWNED, LifeSettings
from opmix.lifecycle.rules import stage_problems
from opmix.mixing.mixture import Mixture
from opmix.settings import Given, changed, settings
from opmix.settings.loading import nearest, validated
from opmix.settings.reading import read_yaml
from opmix.target import target_problems
from opmix.training.arguments import try_arguments, typed_arguments


@settings
class LifecycleConfig(LifeSettings):
    """A life whose stages can follow each other; every problem is told at once."""

    def __post_init__(self) -> None:
        if problems := start_problems(self) or list(stage_problems(self)):
            raise ConfigError(problems)


def load_lifecycle(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> LifecycleConfig:
    """Read and check a lifecycle; `a.b=c` overrides reach into stages by number (`stages.0.tokens=2e6`).

    Raises:
        ConfigError: All problems at once, each with its dotted path.
    """
    return validated(
        LifecycleConfig, read_yaml(path, overrides, expected="domains and stages", verb="run"), where=str(path)
    )


def checked_trainers(life: LifecycleConfig) -> LifecycleConfig:
    """The life with every stage's trainer arguments converted to their types, and tried.

    Raises:
        ConfigError: Unknown names, values that cannot be, and what transformers refuses.
    """
    problems: list[str] = []

    def typed(arguments: Given, where: str) -> Given:
        try:
            return typed_arguments(arguments, where)
        except ConfigError as error:
            problems.extend(error.problems)
            return arguments

    shared = typed(life.search.trainer, "trainer")
    stages = tuple(changed(s, trainer=typed(s.trainer, f"stages.{i}.trainer")) for i, s in enumerate(life.stages))
    tried: list[Given] = []
    for index, stage in enumerate(stages if not problems else ()):
        if (merged := Given({**shared, **stage.trainer})) not in tried:
            tried.append(merged)
            try:
                try_arguments(merged, f"stages.{index}.trainer" if stage.trainer else "trainer")
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return changed(life, search=changed(life.search, trainer=shared), stages=stages)


def _stage_targets(config: LifeSettings) -> Iterator[str]:
    """What is wrong with the stages' own targets; their weights are checked with the decision they are for."""
    texts = dict(config.search.targets)
    for index, stage in enumerate(config.stages):
        where = f"stages.{index}"
        for name, target in stage.targets.items():
            if target is None:
                if name not in config.search.targets:
                    yield f"{where}.targets.{name}: null, and the life has none of that name; remove it"
                continue
            yield from (f"{where}.{p}" for p in target_problems({name: target}, list(config.domains), {name: 1.0}))
            if not texts.setdefault(name, target).same_text(target):
                yield (
                    f"{where}.targets.{name}: other text than the target of that name elsewhere in this life; a target "
                    "is measured in every stage, so give it a name of its own"
                )


def start_problems(config: LifeSettings) -> list[str]:
    """Where the life begins, and what is owned by it."""
    problems = []
    if (config.model is None) == (config.architecture is None):
        problems.append("model: expected either model (a checkpoint) or architecture (from scratch), one of them")
    if config.architecture is not None and config.tokenizer is None:
        problems.append(
            "tokenizer: missing; a model from scratch needs one: a saved one, or {vocab_size: N} to train it"
        )
    if config.old_mixture is not None:
        if config.model is None:
            problems.append("old_mixture: a model from scratch has seen nothing; remove it, or give model")
        try:
            Mixture.of(config.old_mixture)
        except ConfigError as error:
            problems.append(f"old_mixture: {error}")
    told, known = config.search, list(config.domains)
    problems += [
        *told.solve.unknown_names(known, config.targets),
        *target_problems(told.targets, known, told.solve.weights),
        *_stage_targets(config),
    ]
    if not config.seeds or len(set(config.seeds)) != len(config.seeds) or min(config.seeds) < 0:
        problems.append(f"seeds: {list(config.seeds)}; expected different whole numbers >= 0")
    problems += [
        f"evaluation.tasks.{n}: unknown domain{nearest(n, list(config.domains))}"
        for n in config.evaluation.tasks
        if n not in config.domains
    ]
    for where, arguments in (
        ("trainer", config.search.trainer),
        *((f"stages.{i}.trainer", s.trainer) for i, s in enumerate(config.stages)),
    ):
        problems += [f"{where}.{name}: {why}; remove it" for name, why in OWNED.items() if name in arguments]
    return problems
