"""`opmix status` of a comparison: shared steps once, then every entrant's. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from opmix.comparison.config import CompareConfig
from opmix.comparison.steps import entrant_chain, facts_file
from opmix.lifecycle.data_file import NAME as DATA
from opmix.lifecycle.run_status import RunStatus
from opmix.lifecycle.status import recorded_config, recorded_facts, status_of
from opmix.lifecycle.steps import Step
from opmix.settings.loading import validated


def compare_status(folder: Path, config: CompareConfig | None = None) -> RunStatus:
    """The state of a comparison; with `config` against another configuration than the one it was run with.

    Raises:
        StoreError: Not a folder of `opmix compare`.
    """
    config = config or validated(CompareConfig, recorded_config(folder), where=str(folder / "manifest.json"))
    steps: dict[str, Step] = {}
    changed: tuple[str, ...] = ()
    for name in config.methods:
        own = config.learns_otherwise(name) and (folder / facts_file(name)).is_file()
        facts, changed = recorded_facts(folder, config.life_of(name), facts_file(name) if own else DATA)
        for seed in config.life.seeds:
            steps |= {step.name: step for step in entrant_chain(config, name, facts, seed)}
    return status_of(folder, list(steps.values()), changed)
