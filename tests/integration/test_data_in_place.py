"""A search on token files where they lie is the search on the same tokens in the cache, and another once a file is touched."""

import json
import os

import numpy as np
import pytest

import opmix
from opmix.testing import tiny_model, tiny_tokenizer, toy_documents

pytestmark = pytest.mark.slow


def test_a_search_in_place_is_the_search_on_copied_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    for name in ("web", "code"):
        for split, count, seed in (("train", 150, 0), ("held", 40, 1)):
            texts = list(toy_documents(name, count, seed=seed))
            rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
            ids = [i for row in rows for i in (*row, tokenizer.eos_token_id)]
            np.array(ids, dtype="<u2").tofile(tmp_path / f"{name}-{split}.bin")

    def search(out, *, in_place):
        held = {split: str(tmp_path / "{}-held.bin") for split in ("valid", "test")}
        train = {"paths": str(tmp_path / "{}-train.bin"), "in_place": in_place}
        domains = {n: json.loads(json.dumps({"train": train, **held}).replace("{}", n)) for n in ("web", "code")}
        return opmix.search(
            model,
            tokenizer,
            domains,
            budget=20_000,
            sequence_length=64,
            trainer={"learning_rate": 1e-3, "per_device_train_batch_size": 4},
            probes={"steps": 3},
            proxies={"eval_sequences": 8},
            decision={"draws": 20},
            cache_dir=tmp_path / "cache",
            out=tmp_path / out,
        )

    def times(out):
        return [step.stat().st_mtime_ns for step in sorted((tmp_path / out / "steps").glob("probe-0[12]-[wc]*.json"))]

    there, copied = search("there", in_place=True), search("copied", in_place=False)
    assert dict(there.mixture) == dict(copied.mixture)
    files = [json.loads((tmp_path / out / "mixture.json").read_text()) for out in ("there", "copied")]
    assert files[0]["laws"] == files[1]["laws"]
    said = ["names, sizes and times of change" in " ".join(file["notes"]) for file in files]
    assert said == [True, False]
    before = times("there")
    assert len(before) == 2
    search("there", in_place=True)
    assert times("there") == before
    os.utime(tmp_path / "web-train.bin", ns=(10**18, 10**18))
    search("there", in_place=True)
    assert times("there") != before
