import gzip
import json
import shutil
from functools import cache
from pathlib import Path

import pytest

from opmix.testing import tiny_model, tiny_tokenizer, toy_documents


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@cache
def texts(name: str, count: int = 200, seed: int = 0) -> tuple[dict, ...]:
    return tuple({"text": text} for text in toy_documents(name, count, seed=seed))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved two-layer model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("alpha", "beta", "gamma"):
        write_rows(folder / name / "train.jsonl.gz", texts(name, 100))
        write_rows(folder / name / "valid.jsonl.gz", texts(name, 40, seed=1))
    return folder


@pytest.fixture
def corpus(_corpus, tmp_path):
    """Three domains as `<domain>/{train,valid}.jsonl.gz`; a copy for each test."""
    return shutil.copytree(_corpus, tmp_path / "data")
