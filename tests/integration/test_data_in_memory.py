"""A search on data that lie in memory is the search on the same data in files, and resumes."""

import json

import datasets
import pytest

import opmix
from opmix.testing import tiny_model, tiny_tokenizer, toy_documents

pytestmark = pytest.mark.slow


def test_a_search_on_objects_resumes_with_the_same_objects(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    texts = {name: list(toy_documents(name, 120)) for name in ("web", "code")}
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts["web"]))
    told = {
        "budget": 20_000,
        "sequence_length": 64,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
        "probes": {"steps": 3},
        "proxies": {"eval_sequences": 8},
        "decision": {"draws": 20},
        "cache_dir": tmp_path / "cache",
    }

    def search(web, out):
        code = datasets.Dataset.from_dict({"text": texts["code"]})
        return opmix.search(model, tokenizer, {"web": web, "code": code}, out=out, **told)

    found = search((t for t in texts["web"]), tmp_path / "a")
    steps = sorted((tmp_path / "a" / "steps").iterdir())
    times = [step.stat().st_mtime_ns for step in steps]
    again = search(texts["web"], tmp_path / "a")
    assert [step.stat().st_mtime_ns for step in steps] == times
    files = search(tmp_path / "web.jsonl", tmp_path / "b")
    assert dict(found.mixture) == dict(again.mixture) == dict(files.mixture)
    assert (tmp_path / "a" / "mixture.json").read_text() == (tmp_path / "b" / "mixture.json").read_text()
