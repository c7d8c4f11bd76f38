"""From `opmix search` to the first training step: ten frames of ours, no more, or nobody can follow them."""

import sys
import traceback
from pathlib import Path

import pytest
import transformers
import yaml

import opmix
from opmix.cli.main import main
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

MOST = 10


class Reached(BaseException):
    """Raised in place of training, past every handler of errors."""


def test_from_the_command_to_the_first_training_step(tmp_path, monkeypatch):
    files = write_toy_domains(tmp_path / "data", {"alpha": 1, "beta": 2}, 60)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    config = {
        "model": str(tmp_path / "model"),
        "domains": {n: {"train": str(f), "holdout": 0.2} for n, f in files.items()},
        "sequence_length": 32,
        "budget": {"tokens": 20000},
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
        "probes": {"steps": 16},
        "proxies": {"eval_sequences": 4},
        "cache_dir": str(tmp_path / "cache"),
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
    frames = []

    def train(self, *args, **kwargs):
        package = str(Path(opmix.__file__).parent)
        frames.extend(f.name for f in traceback.extract_stack() if f.filename.startswith(package))
        raise Reached

    monkeypatch.setattr(transformers.Trainer, "train", train)
    monkeypatch.setattr(sys, "argv", ["opmix", "search", str(tmp_path / "search.yaml"), "--out", str(tmp_path / "run")])
    with pytest.raises(Reached):
        main()
    assert frames[0] == "main"
    assert frames[-1] == "run_training"
    assert len(frames) <= MOST, " -> ".join(frames)
