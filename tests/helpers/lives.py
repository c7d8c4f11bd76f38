"""Small lives: one-layer models on toy domains, seconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from opmix.cli.console import quiet_libraries
from opmix.lifecycle.life import LifeResult, run_life
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.steps import DataFacts
from opmix.settings.loading import validated
from opmix.testing import write_toy_domains

NAMES = ("alpha", "beta", "gamma", "delta")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
STEP = 4 * 32
"""Tokens of an optimizer step."""


def stage(name: str, steps: int, **settings: Any) -> dict[str, Any]:
    """One stage of a YAML file."""
    return {"name": name, "tokens": steps * STEP, **settings}


def content(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a lifecycle's YAML would hold; by default two stages, the first with a prefix."""
    chosen = stages or (stage("one", 8, domains=["alpha", "beta"], prefix=0.5), stage("two", 4, add=["gamma"]))
    return {
        "architecture": ARCHITECTURE,
        "tokenizer": {"vocab_size": 300, "documents": 30},
        "domains": {n: {"train": f"data/{n}.jsonl", "holdout": 0.2} for n in NAMES},
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 2},
        "probes": {"steps": 2, "rank": 2},
        "proxies": {"eval_sequences": 4},
        "decision": {"draws": 10, "verify": False},
        "evaluation": {"sequences": 4},
        "cache_dir": "data/cache",
        "stages": list(chosen),
        **changes,
    }


def life(*stages: dict[str, Any], **changes: Any) -> LifecycleConfig:
    """The same, checked."""
    return validated(LifecycleConfig, content(*stages, **changes))


def fixed(name: str, steps: int, **settings: Any) -> dict[str, Any]:
    """A stage without a search."""
    return stage(name, steps, **{"mixture": "uniform", **settings})


def facts(**fingerprints: str) -> DataFacts:
    """Data of 100 sequences a domain."""
    return DataFacts(
        tokenizer="t", fingerprints={**{n: n for n in NAMES}, **fingerprints}, rows=dict.fromkeys(NAMES, 100)
    )


class Toys:
    """A folder with data, in which lives are lived."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, *stages: dict[str, Any], **changes: Any) -> LifecycleConfig:
        """A checked life whose tokenised data lie beside the texts."""
        return life(*stages, **{"cache_dir": str(self.folder / "data" / "cache"), **changes})

    def live(self, config: LifecycleConfig, out: Path, **settings: Any) -> LifeResult:
        """Live it."""
        return run_life(config, out=out, base=self.folder, **settings)


def done(out: Path) -> list[str]:
    """Steps done so far, in order, over all runs."""
    lines = (out / "events.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "end"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a saved model."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def outcome(result: LifeResult) -> dict[str, Any]:
    """`life.json` as it is on disk."""
    return outcome_of(result.folder)


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    quiet_libraries()


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toy_domains(folder / "data", NAMES, 60)
    return Toys(folder)


@pytest.fixture(scope="session")
def finished(toys, tmp_path_factory):
    """A two-stage life, lived: its configuration and result. Not to be changed."""
    config = toys.config()
    return config, toys.live(config, tmp_path_factory.mktemp("finished") / "life")


def outcome_of(folder: Path) -> dict[str, Any]:
    """What `life.json` holds."""
    return json.loads((folder / "life.json").read_text())


def stages(folder: Path) -> list[dict[str, Any]]:
    """The stages of seed 0."""
    return outcome_of(folder)["seeds"]["0"]["stages"]
