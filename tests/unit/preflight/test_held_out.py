"""What is left to judge on, of domains whose few documents are of unequal length."""

import json
from itertools import count

import pytest
import yaml

from opmix.data.inspect.splits import empty_splits, split_shares
from opmix.data.split import SplitRule
from opmix.domain import Domain, Source
from opmix.preflight import validate

RULE = SplitRule(carved=("valid", "test"), holdout=0.2)


def documents(split, number, words):
    """Of that split, and of that length."""
    found = (f"{k} " + "word " * words for k in count() if RULE.split_of(f"{k} " + "word " * words) == split)
    return [next(found) for _ in range(number)]


@pytest.fixture
def unequal(tmp_path):
    """Six long documents to train on and to validate with, two of a few words to test with."""
    texts = [*documents("train", 4, 2000), *documents("valid", 2, 2000), *documents("test", 2, 3)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def test_few_documents_are_divided_as_they_are(unequal):
    domain = Domain(name="few", train=Source(paths=(str(unequal / "few.jsonl"),)), holdout=0.2)
    shares = split_shares(domain, 8)
    assert shares["test"] < 0.002
    assert shares["valid"] == pytest.approx(1 / 3, abs=0.01)
    assert sum(shares.values()) == pytest.approx(1)
    assert empty_splits(shares) == ()
    assert split_shares(domain, 10**6) is None


def test_a_life_that_could_not_measure_a_domain_is_not_ready(unequal):
    told = {
        "architecture": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
        "tokenizer": {"vocab_size": 300},
        "domains": {"few": {"train": "few.jsonl", "holdout": 0.2}},
        "sequence_length": 64,
        "trainer": {"learning_rate": 1e-3, "batch": 2},
        "stages": [{"name": "one", "tokens": 2000, "domains": ["few"], "mixture": "uniform"}],
    }
    (unequal / "life.yaml").write_text(yaml.safe_dump(told))
    failed = {c.name: c.detail for c in validate(unequal / "life.yaml").checks if c.status == "fail"}
    assert list(failed) == ["domains.few.test"]
    assert "expected at least two sequences of 64" in failed["domains.few.test"]
