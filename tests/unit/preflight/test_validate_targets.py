"""`opmix validate` on targets: what there is of them, what is wrong with them, and what they cost."""

import json
import re

import pytest
import yaml

from opmix.domain import Domain, Source
from opmix.errors import DataError
from opmix.preflight import validate
from opmix.preflight.targets import ENOUGH_TOKENS
from opmix.progress import Silent
from opmix.target import Target
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains
from opmix.training.settings import DistillationSettings
from opmix.training.stage_data import prepare_data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aims")
    write_toy_domains(folder, ["alpha", "beta", "manual"], 60)
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"{i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(30)]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "broken.jsonl").write_text("".join(json.dumps({**row, "answer": None}) + "\n" for row in rows))
    (folder / "empty.jsonl").write_text("")
    (folder / "short.jsonl").write_text(json.dumps({"text": "a few words"}) + "\n")
    (folder / "one.jsonl").write_text((folder / "manual.jsonl").read_text().splitlines()[0] + "\n")
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 9
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    return folder


def checked(place, targets, **more):
    content = {
        "model": "model",
        "domains": {n: {"train": f"{n}.jsonl", "holdout": 0.2} for n in ("alpha", "beta")},
        "budget": 20_000,
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 4},
        "probes": {"steps": 4},
        "proxies": {"eval_sequences": 16},
        "targets": targets,
        **more,
    }
    path = place / "search.yaml"
    path.write_text(yaml.safe_dump(content))
    return validate(path)


def told(found, path):
    return [check for check in found.checks if check.name == path and check.status != "ok"]


def test_targets_are_told_and_counted(place):
    found = checked(place, {"manual": "manual.jsonl", "exam": "exam.jsonl"})
    assert found.valid, [c for c in found.checks if c.status == "fail"]
    (line,) = [c.detail for c in found.checks if c.name == "targets"]
    assert "2, never trained on: exam about" in line
    sizes = found.json()["targets"]
    assert sizes["exam"]["valid"]["documents"] + sizes["exam"]["test"]["documents"] == 30
    without = checked(place, {})
    assert "targets" not in without.json()
    assert found.cost.eval_tokens > without.cost.eval_tokens


def test_a_target_of_which_too_little_is_read_is_told_what_to_raise(place):
    (few,) = told(checked(place, {"manual": "manual.jsonl"}), "targets.manual.valid")
    assert "512 tokens of it are read" in few.detail
    rows = int(re.search(r"proxies\.eval_sequences to (\d+)", few.remedy)[1])
    assert (rows - 1) * 32 < ENOUGH_TOKENS <= rows * 32
    (place / "long.jsonl").write_text((place / "manual.jsonl").read_text() * 20)
    more = checked(place, {"manual": "long.jsonl"}, proxies={"eval_sequences": rows})
    assert not told(more, "targets.manual.valid")


@pytest.mark.parametrize(
    ("targets", "path", "said"),
    [
        ({"t": "empty.jsonl"}, "targets.t", "target 't'.*holds no document"),
        ({"t": "nowhere.jsonl"}, "targets.t", "target 't': .*nowhere.jsonl: no such file"),
        ({"t": "broken.jsonl"}, "targets.t", "target 't': .*broken.jsonl:1: answer: none"),
        ({"t": "alpha.jsonl"}, "targets", "targets.t.valid: .* is what domain 'alpha' trains on"),
        ({"t": "one.jsonl"}, "targets.t", "1 documents; splitting a test off leaves"),
        ({"t": {"valid": "manual.jsonl", "test": "short.jsonl"}}, "targets.t.test", "expected at least two"),
        ({"t": "chats.jsonl"}, "targets.t", "the tokenizer has no chat template"),
    ],
)
def test_what_is_wrong_with_a_target_is_told_as_the_targets(place, targets, path, said):
    found = checked(place, targets)
    assert not found.valid
    assert [c for c in told(found, path) if c.status == "fail"], found.checks
    assert any(re.search(said, c.detail) for c in told(found, path)), told(found, path)
    assert not any("domain 't'" in c.detail for c in found.checks)


def test_a_search_says_target_too(place, tmp_path):
    target = Target(valid=Source(paths=("empty.jsonl",)), kind="text")
    with pytest.raises(DataError, match="target 't'") as error:
        prepare_data(
            {
                n: Domain(name=n, holdout=0.2, train=Source(paths=(str(place / f"{n}.jsonl"),)))
                for n in ("alpha", "beta")
            },
            tiny_tokenizer(),
            targets={"t": target.domain("t", place)},
            objective="causal_lm",
            sdft=DistillationSettings(),
            sequence_length=32,
            cache_dir=tmp_path,
            num_proc=1,
            progress=Silent(),
        )
    assert "domain 't'" not in str(error.value)


def test_text_that_is_trained_on_is_named_with_its_share(place):
    long = [
        {"text": f"{i} " + "every word of this document stands in both files and is read in the same order " * 3}
        for i in range(40)
    ]
    (place / "gamma.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (place / "copied.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long[:30]))
    domains = {n: {"train": f"{n}.jsonl", "holdout": 0.2} for n in ("alpha", "gamma")}
    found = checked(place, {"t": "copied.jsonl"}, domains=domains)
    (told_,) = [c for c in told(found, "targets.t") if "13 words in a row" in c.detail]
    assert told_.status == "warn"
    assert "at least 100% of its text is in what domain 'gamma' trains on" in told_.detail
