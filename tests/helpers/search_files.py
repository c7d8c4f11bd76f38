"""A search of two domains that other processes can be told of: a two-layer model, its data and `search.yaml` in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains


def write_search(folder: Path, **changes: Any) -> Path:
    """The file's path."""
    paths, tokenizer = write_toy_domains(folder, ("web", "code"), num_documents=200, seed=0), tiny_tokenizer()
    for part in (tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer):
        part.save_pretrained(folder / "model")
    content = {
        "model": "model",
        "domains": {n: str(p) for n, p in paths.items()},
        "budget": "1M",
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "batch": 4},
        "probes": {"steps": 30, "rank": 2, "adaptive": False},
        "proxies": {"count": 4, "eval_sequences": 4},
        "decision": {"draws": 10, "verify": False},
        "law": "log_linear",
        "cache_dir": str(folder / "tokens"),
        **changes,
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return file
