"""`validate` counts conversations that fit, and says what a life costs."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.preflight import validate
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    tokenizer = tiny_chat_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    write_toy_chats(folder, {"math": 1, "talk": 1}, 120)
    write_toy_domains(folder / "text", ["web"], 200)
    rows = [json.loads(line) for line in (folder / "math.jsonl").read_text().splitlines()]
    long = [{"messages": [{**m, "content": m["content"] * 60} for m in row["messages"]]} for row in rows]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long[:30]))
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:90], *long[:30]]))
    return folder


def search(place, length=128, **domains):
    told = {
        "model": "llama",
        "objective": "sft",
        "domains": {"talk": "talk.jsonl", **domains},
        "budget": 20_000,
        "sequence_length": length,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 2},
        "probes": {"steps": 5},
        "proxies": {"eval_sequences": 4},
    }
    (place / "s.yaml").write_text(yaml.safe_dump(told))
    return {(check.name, check.status): check.detail for check in validate(place / "s.yaml").checks}


@pytest.mark.slow
def test_how_many_conversations_are_left_out_is_said(place):
    found = search(place, math="mixed.jsonl")
    told = re.search(
        r"of 120 conversations (\d+) \(\d+%\) are longer than 128 tokens and left out",
        found["domains.math.train", "warn"],
    )
    assert told is not None
    assert 30 <= int(told[1]) < 60
    assert ("domains.talk.train", "fail") not in found
    cut = search(place, math={"train": "mixed.jsonl", "chat": {"truncate": "left"}})
    assert "cut on the left" in cut["domains.math.train", "warn"]


def test_a_split_without_one_that_fits_is_not_ready(place):
    found = search(place, math={"train": "math.jsonl", "test": "long.jsonl"})
    assert "none of 30 conversations fits into sequence_length 128" in found["domains.math.test", "fail"]


def life(place, **changes):
    told = {
        "model": "llama",
        "domains": {"web": "text/web.jsonl", "talk": "talk.jsonl"},
        "old_mixture": {"web": 1.0},
        "sequence_length": 128,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 2},
        "probes": {"steps": 5},
        "proxies": {"eval_sequences": 4},
        "evaluation": {"sequences": 4},
        "stages": [
            {"name": "one", "tokens": 4000, "domains": ["web"], "mixture": "uniform"},
            {"name": "two", "tokens": 4000, "add": ["talk"]},
        ],
        **changes,
    }
    (place / "life.yaml").write_text(yaml.safe_dump(told))
    return place / "life.yaml"


def test_conversations_of_later_stages_are_counted_too(place):
    domains = {"web": "text/web.jsonl", "talk": {"train": "talk.jsonl", "valid": "long.jsonl"}}
    found = {(c.name, c.status): c.detail for c in validate(life(place, domains=domains)).checks}
    assert "none of 30 conversations fits" in found["domains.talk.valid", "fail"]


def test_a_life_has_a_cost(place):
    shown = CliRunner().invoke(app, ["validate", str(life(place)), "--json"])
    content = json.loads(shown.stdout)
    assert content["valid"]
    cost = content["cost"]
    assert cost["tokens"] == pytest.approx(8000, rel=0.1)
    assert cost["training"] > 0
    assert cost["searches"] > 0
    assert cost["measuring"] > 0
    twice = json.loads(
        CliRunner().invoke(app, ["validate", str(life(place)), "--json", "--set", "probes.steps=10"]).stdout
    )
    assert twice["cost"]["searches"] > cost["searches"]
    assert twice["cost"]["training"] == cost["training"]
    words = CliRunner().invoke(app, ["validate", str(life(place)), "--set", "seeds=[0, 1]"])
    assert "cost a seed: " in words.output


@pytest.mark.parametrize("domains", [["web"], "web", 7, [["web", 1, 2]]])
def test_domains_of_odd_shapes_are_told(place, domains):
    assert any(check.status == "fail" for check in validate(life(place, domains=domains)).checks)
