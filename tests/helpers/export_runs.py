"""A search's run folder over real files whose tokens are their words, so that shares can be counted."""

import json
import random
from types import SimpleNamespace

import pytest
from export_shares import MIXTURE, WORDS

from opmix.config import parse_config
from opmix.settings import as_json


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """2,000 documents a domain; every word of a domain is its name."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    counts = {}
    for name, (low, high) in WORDS.items():
        lengths = [rng.randint(low, high) for _ in range(2000)]
        lines = [json.dumps({"text": " ".join([name] * n)}) for n in lengths]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        counts[name] = {"tokens": sum(lengths), "documents": len(lengths), "bytes": sum(map(len, lines))}
    return SimpleNamespace(folder=folder, counts=counts)


@pytest.fixture
def make_run(corpus, tmp_path):
    """Writes the files of a search, with what a test changes."""

    def make(*, budget=100_000, mixture=MIXTURE, counts=True, domains=None, **config):
        held = str(corpus.folder / "poems.jsonl")
        entries = domains or {
            name: {"train": str(corpus.folder / f"{name}.jsonl"), "valid": held, "test": held} for name in mixture
        }
        settings = {"model": "m", "domains": entries, "budget": {"tokens": budget}, "sequence_length": 32, **config}
        empty = {"tokens": 0, "documents": 0, "bytes": 0}
        content = {
            "schema": 1,
            "kind": "search",
            "mixture": dict(mixture),
            "cost": {"stage_tokens": budget},
            "domains": {n: {"train": corpus.counts[n], "valid": empty, "test": empty} for n in mixture}
            if counts
            else {},
        }
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "mixture.json").write_text(json.dumps(content))
        manifest = {"command": "search", "config": as_json(parse_config(settings))}
        (run / "manifest.json").write_text(json.dumps(manifest))
        return run

    return make


@pytest.fixture
def fitted_run(tmp_path):
    """What `opmix fit` leaves: shares, and nothing about the data."""
    run = tmp_path / "fitted"
    run.mkdir()
    (run / "mixture.json").write_text(json.dumps({"schema": 1, "kind": "fit", "mixture": MIXTURE}))
    (run / "manifest.json").write_text(json.dumps({"command": "fit", "inputs": {"kl": 0.05}}))
    return run
