"""What is lived in a comparison: the stages that all methods share, seed by seed, then every method's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from opmix.comparison.config import CompareConfig
from opmix.comparison.contender import Contender
from opmix.comparison.steps import entrant_chain, home_of
from opmix.errors import ConfigError
from opmix.lifecycle.handed_out import Life
from opmix.lifecycle.life import live_stages, start_of_life
from opmix.lifecycle.records import StageState
from opmix.lifecycle.runtime import LifeRuntime, make_runtime
from opmix.lifecycle.stages import resolve
from opmix.results.life import StageEntry


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One method of a comparison."""

    name: str
    runtime: LifeRuntime
    lives: Mapping[int, Life]
    """By seed: its own stages, with the steps of the shared ones before them."""


def entrant_of(config: CompareConfig, name: str, shared: LifeRuntime) -> Entrant:
    """An entrant, with a runtime of its own where it learns from other rows than the others do.

    Raises:
        OpMixError: What it learns from cannot be prepared.
    """
    life = config.life_of(name)
    if not config.learns_otherwise(name):
        runtime = replace(shared, life=life)
    else:
        try:
            runtime = make_runtime(life, shared.base, shared.store, shared.progress, shared.make_trainer)
        except ConfigError as error:
            raise ConfigError([f"methods.{name}: {problem}" for problem in error.problems]) from error
    lives = {
        seed: Life(
            home=home_of(seed, name), seed=seed, steps=entrant_chain(config, name, runtime.facts, seed), entrant=name
        )
        for seed in config.life.seeds
    }
    return Entrant(name=name, runtime=runtime, lives=lives)


def shared_lives(config: CompareConfig, shared: LifeRuntime) -> dict[int, Life]:
    """By seed: the stages before the first contested one; where there are none, the model that all start from."""
    lives = {}
    for seed in config.life.seeds:
        steps = entrant_chain(config, next(iter(config.methods)), shared.facts, seed)
        mine = [step for step in steps if step.stage is None or step.stage.index < config.contested]
        lives[seed] = Life(home=home_of(seed), seed=seed, steps=mine)
    return lives


def live_shared(config: CompareConfig, shared: LifeRuntime, life: Life) -> tuple[list[StageEntry], StageState]:
    """Live what all methods share of a seed, or what is left of it; see `live_stages`."""
    stages = resolve(shared.life, shared.facts.stages)[: config.contested]
    state = start_of_life(shared, life.seed, life.steps[0])
    return live_stages(shared, life.seed, stages, life.steps, state, home=life.home)


def live_own(config: CompareConfig, entrant: Entrant, seed: int, state: StageState) -> list[StageEntry]:
    """Live an entrant's own stages of a seed, or what is left of them, from where the shared ones ended."""
    runtime, life = entrant.runtime, entrant.lives[seed]
    contender = Contender(config.entry(entrant.name), config.method(entrant.name))
    stages = resolve(runtime.life, runtime.facts.stages)[config.contested :]
    return live_stages(runtime, seed, stages, life.steps, state, home=life.home, contender=contender)[0]
