"""Small comparisons: one-layer models on toy domains, seconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opmix.cli.console import quiet_libraries
from opmix.comparison.config import CompareConfig
from opmix.comparison.run import CompareResult, run_compare
from opmix.settings.loading import validated
from opmix.testing import CHATML, write_toy_domains

NAMES = ("alpha", "beta", "gamma")
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


def content(methods: Any, *, steps: int = 4, **changes: Any) -> dict[str, Any]:
    """What a compare.yaml would hold: a base on two domains, then a stage with a third."""
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
        "stages": [
            {"name": "base", "domains": ["alpha", "beta"], "mixture": "uniform", "tokens": 6 * STEP},
            {"name": "more", "add": ["gamma"], "tokens": steps * STEP},
        ],
        "methods": methods,
        **changes,
    }


def contest(methods: Any, **changes: Any) -> CompareConfig:
    """The same, checked."""
    return validated(CompareConfig, content(methods, **changes))


def on_chats(folder: Path, methods: Any, **changes: Any) -> CompareConfig:
    """A stage of text, then one that adds the conversations `terse`; both lie in `folder`."""
    settings = {
        "architecture": {**ARCHITECTURE, "max_position_embeddings": 400},
        "sequence_length": 160,
        "chat_template": CHATML,
        "tokenizer": {"vocab_size": 320, "documents": 30, "special_tokens": ["<|im_start|>", "<|im_end|>"]},
        "domains": {n: {"train": str(folder / f"{n}.jsonl"), "holdout": 0.2} for n in ("web", "terse")},
        "cache_dir": str(folder / "cache"),
        "sdft": {"max_new_tokens": 4, "skip_tokens": 0},
        "stages": [
            {"name": "text", "domains": ["web"], "tokens": 2000, "mixture": "uniform"},
            {"name": "terse", "add": ["terse"], "tokens": 2000},
        ],
    }
    return contest(methods, **settings, **changes)


class Arena:
    """A folder with data, in which comparisons are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, methods: Any, **changes: Any) -> CompareConfig:
        """Tokenised data lie beside the texts."""
        return contest(methods, **{"cache_dir": str(self.folder / "data" / "cache"), **changes})

    def run(self, config: CompareConfig, out: Path, **settings: Any) -> CompareResult:
        """Run it."""
        return run_compare(config, out=out, base=self.folder, **settings)


def done(out: Path) -> list[str]:
    """Steps done so far, in order, over all runs."""
    lines = (out / "events.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "end"]


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    quiet_libraries()


@pytest.fixture(scope="session")
def arena(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    write_toy_domains(folder / "data", NAMES, 60)
    return Arena(folder)


@pytest.fixture(scope="session")
def finished(arena, tmp_path_factory):
    """Four methods and two seeds: configuration and result. Not to be changed."""
    config = arena.config(["op_mix", "uniform", "full_retraining", "lora_merge"], seeds=[0, 1])
    return config, arena.run(config, tmp_path_factory.mktemp("finished") / "compare")
