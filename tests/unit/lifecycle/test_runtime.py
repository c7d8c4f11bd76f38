"""What all stages of a life share."""

import pytest

from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.runtime import make_runtime
from opmix.progress import Silent
from opmix.runs.store import RunStore
from opmix.settings.loading import validated
from opmix.testing import write_toy_domains


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("left", [b"", b'{"version": "1.0", "trunc', None])
def test_a_tokenizer_that_a_power_failure_left_empty_is_trained_again(tmp_path, name, left):
    write_toy_domains(tmp_path, ("alpha", "beta"), 40)
    life = validated(
        LifecycleConfig,
        {
            "architecture": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32},
            "tokenizer": {"vocab_size": 280, "documents": 20},
            "domains": {n: {"train": f"{n}.jsonl", "holdout": 0.2} for n in ("alpha", "beta")},
            "sequence_length": 16,
            "cache_dir": str(tmp_path / "cache"),
            "stages": [{"name": "one", "tokens": 64, "domains": ["alpha", "beta"]}],
        },
    )
    with RunStore(tmp_path / "run") as store:
        first = make_runtime(life, tmp_path, store, Silent(), None)
        whole = {file.name: file.read_bytes() for file in (tmp_path / "run" / "tokenizer").iterdir()}
        damaged = tmp_path / "run" / "tokenizer" / name
        if left is None:
            damaged.unlink()
        else:
            damaged.write_bytes(left)
        assert make_runtime(life, tmp_path, store, Silent(), None).facts == first.facts
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "tokenizer").iterdir()} == whole
