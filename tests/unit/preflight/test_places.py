"""`opmix init` on several folders and on datasets of the hub, for which `datasets` takes folders beside the working directory."""

import json
import time

import pytest
import yaml
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import load_config
from opmix.data import domain_kind
from opmix.data.chat.conversation import _first_of_hub
from opmix.domain import Domain, Source
from opmix.errors import DataError
from opmix.preflight import validate
from opmix.scaffold import first_config

from .conftest import texts, write_rows

runner = CliRunner()
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def chats(count=60):
    return [
        {
            "messages": [
                {"role": "user", "content": f"what is {i}?"},
                {"role": "assistant", "content": f"it is {i} " * 9},
            ]
        }
        for i in range(count)
    ]


def calls(count=60):
    rest = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "It is 3. " * 9},
    ]
    questions = [{"role": "user", "content": f"1+2? asked {i}"} for i in range(count)]
    return [{"messages": [q, *rest], "tools": json.dumps([CALL]), "id": q["content"]} for q in questions]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """`org/name` with a configuration of conversations and one of texts under another name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    _first_of_hub.cache_clear()
    configs = []
    for config, rows in (
        ("talk", chats()),
        ("prose", [{"id": i, "body": r["text"]} for i, r in enumerate(texts("web"))]),
    ):
        write_rows(tmp_path / "org" / "name" / config / "train.jsonl", rows)
        write_rows(tmp_path / "org" / "name" / config / "validation.jsonl", rows[:40])
        files = [{"split": s, "path": f"{config}/{s}.jsonl"} for s in ("train", "validation")]
        configs.append({"config_name": config, "data_files": files})
    card = tmp_path / "org" / "name" / "README.md"
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return tmp_path


def test_a_dataset_of_the_hub_becomes_a_domain_a_configuration(repository):
    made = runner.invoke(app, ["init", "hf://org/name"])
    assert made.exit_code == 0, made.output
    config = load_config(repository / "search.yaml")
    assert {n: (d.kind, d.train.format, d.train.config_name) for n, d in config.domains.items()} == {
        "talk": ("chat", "hub", "talk"),
        "prose": (None, "hub", "prose"),
    }
    prose = config.domains["prose"]
    assert (prose.train.field, prose.train.split, prose.valid.split) == ("body", "train", "validation")
    assert prose.train.max_tokens is None
    assert config.objective == "sft"
    assert "hf://org/name/prose:train" in (repository / "search.yaml").read_text()


def test_the_kind_of_a_hub_dataset_is_told_from_its_columns(repository):
    def kind(config, **more):
        return domain_kind(
            Domain(name="d", train=Source(paths=("org/name",), format="hub", config_name=config, **more))
        )

    assert (kind("talk"), kind("prose"), kind("prose", field="body")) == ("chat", "text", "text")


def test_a_large_dataset_is_read_up_to_a_limit(repository, monkeypatch):
    monkeypatch.setattr("opmix.scaffold.places.HUB_TOKENS", 1000)
    made = first_config("hf://org/name", repository / "s.yaml")
    config = load_config(repository / "s.yaml")
    assert [d.train.max_tokens for d in config.domains.values()] == [1000, 1000]
    assert all(each.sizes["train"].row_tokens == pytest.approx(1000, abs=1) for each in made.domains)


@pytest.mark.parametrize("name", ["org/nothing", "hf://org/nothing", "hf://org/nothing/config:train"])
def test_without_a_network_the_hub_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"org/nothing: no folder here, and no dataset that the hub gives .*offline"):
        first_config(name, tmp_path / "s.yaml")
    assert time.monotonic() - started < 5
    assert not (tmp_path / "s.yaml").exists()


def test_several_folders_are_a_domain_each_or_hold_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "web" / "part_a.jsonl", texts("web"))
    write_rows(tmp_path / "web" / "part_b.jsonl", texts("web", seed=2))
    write_rows(tmp_path / "more" / "code" / "train.jsonl", texts("code"))
    write_rows(tmp_path / "more" / "web" / "train.jsonl", texts("math"))
    write_rows(tmp_path / "news.jsonl", texts("news"))
    made = runner.invoke(app, ["init", "web", "more", "news.jsonl"])
    assert made.exit_code == 0, made.output
    config = load_config(tmp_path / "search.yaml")
    assert list(config.domains) == ["web", "code", "web_2", "news"]
    assert config.domains["web"].train.paths == ("web/part_*.jsonl",)
    assert config.domains["web_2"].train.paths == ("more/web/train.jsonl",)
    failed = [c.detail for c in validate(tmp_path / "search.yaml").checks if c.status == "fail"]
    assert failed == ["still the placeholder of `opmix init`"]


@pytest.mark.parametrize(
    "rows",
    [
        calls(),
        [{"conversations": [{"from": "human", "value": f"a b {i}"}, {"from": "gpt", "value": "c"}]} for i in range(60)],
        [{"instruction": f"say {i}", "input": "", "output": "words and more words"} for i in range(60)],
    ],
    ids=["tool calls", "ShareGPT", "Alpaca"],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_conversations_are_found_in_whatever_format(rows, as_array, tmp_path):
    for name in ("one", "two"):
        write_rows(tmp_path / "data" / f"{name}.json", rows)
        if as_array:
            (tmp_path / "data" / f"{name}.json").write_text(json.dumps(rows, indent=1))
    made = first_config(tmp_path / "data", tmp_path / "s.yaml")
    assert {each.name: each.kind for each in made.domains} == {"one": "chat", "two": "chat"}
    assert all(each.sizes["train"].documents == 60 for each in made.domains)
