"""What must hold between the stages of a life, before any of it is lived. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opmix.compute.budget import FSDP, FSDP_CONFIG
from opmix.errors import ConfigError
from opmix.lifecycle.available_domains import decision_config
from opmix.lifecycle.config import LifeSettings
from opmix.lifecycle.stages import Stage, resolve
from opmix.mixing.mixture import Mixture
from opmix.settings.loading import nearest
from opmix.training.fsdp_arguments import kept_from_parts


def stage_problems(life: LifeSettings) -> Iterator[str]:
    """What is wrong with the stages, one sentence each with its dotted path."""
    named = [stage.name for stage in life.stages]
    known = list(life.domains)
    for name in life.old_mixture or ():
        if name not in known:
            yield f"old_mixture.{name}: unknown domain{nearest(name, known)}"
    yield from _kept_from_parts(life)
    for i, config in enumerate(life.stages):
        if config.name in named[:i]:
            yield f"stages.{i}.name: {config.name!r} is taken by stage {named.index(config.name)}; give each its own"
        fixed = list(config.mixture) if isinstance(config.mixture, dict) else []
        prefix = list(config.prefix_mixture) if isinstance(config.prefix_mixture, dict) else []
        for key, names in (
            ("domains", config.domains or ()),
            ("add", config.add),
            ("drop", config.drop),
            ("mixture", fixed),
            ("prefix_mixture", prefix),
        ):
            for name in names:
                if name not in known:
                    yield f"stages.{i}.{key}.{name}: unknown domain{nearest(name, known)}"
    if not any(d not in known for c in life.stages for d in (*(c.domains or ()), *c.add, *c.drop)):
        for stage in resolve(life):
            yield from _problems_of(stage)


def _kept_from_parts(life: LifeSettings) -> Iterator[str]:
    """What cannot be done with a model that is spread over ranks; all stages spread theirs, or none."""
    yield from life.search.kept_from_parts()
    told = life.search.trainer
    yield from kept_from_parts(told, {"evaluation.tasks": (bool(life.evaluation.tasks), "leave it out")})
    for i, config in enumerate(life.stages):
        for name in (FSDP, FSDP_CONFIG):
            if name in config.trainer:
                yield f"stages.{i}.trainer.{name}: of a life all stages spread their model, or none; say it in trainer"
        said = {
            "optimizer": (config.optimizer == "continued", "use fresh"),
            "objective": (config.objective == "sdft", "expected causal_lm or sft"),
            "probes.kind": (config.probes.get("kind", "lora") != "lora", "expected lora"),
            "probes.modules_to_save": (bool(config.probes.get("modules_to_save")), "leave it out"),
        }
        yield from kept_from_parts(told, {f"stages.{i}.{path}": rule for path, rule in said.items()})


def _problems_of(stage: Stage) -> Iterator[str]:
    config, where = stage.config, f"stages.{stage.index}"
    if not stage.domains:
        yield f"{where}.domains: none on offer; name at least one in domains or add"
        return
    for name in config.drop:
        if name not in (*(config.domains or ()), *stage.before):
            yield f"{where}.drop.{name}: is not on offer; expected one of {list(stage.before)}"
    for key, shares in (("mixture", config.mixture), ("prefix_mixture", config.prefix_mixture)):
        if isinstance(shares, dict):
            yield from _mixture_problems(f"{where}.{key}", shares, stage.domains)
    if config.mixture == "current" and not set(stage.before) & set(stage.domains):
        yield f"{where}.mixture: 'current' needs an old mixture; expected search, uniform, size or shares"
    if config.optimizer == "continued" and stage.index == 0:
        yield f"{where}.optimizer: 'continued' needs a stage before; use fresh"
    if not stage.searched:
        for key in ("prefix", "remix_every"):
            if getattr(config, key) is not None:
                yield f"{where}.{key}: has no meaning with a fixed mixture; remove it, or use mixture: search"
        return
    if len(stage.domains) < 2:
        yield f"{where}.domains: {list(stage.domains)}; a search needs at least two (or give a fixed mixture)"
        return
    if config.prefix and not 0 < stage.prefix_steps < stage.steps:
        yield f"{where}.prefix: {config.prefix}; of {stage.steps} steps that leaves none before or after it"
    kept = [d for d in stage.before if d in stage.domains]
    try:
        decision_config(stage, max(stage.tokens, 1), 0, Mixture.uniform(kept) if kept else None)
    except ConfigError as error:
        yield from (f"{where}.{problem}" for problem in error.problems)


def _mixture_problems(where: str, shares: dict[str, float], domains: Sequence[str]) -> Iterator[str]:
    try:
        Mixture.of(shares).on(domains)
    except ConfigError as error:
        yield f"{where}: {error}"
