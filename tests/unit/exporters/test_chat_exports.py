"""Conversations go to trainers as conversations, or not at all; nothing in a name or path leaves its comment or string."""

import ast
import json

import pytest
import yaml

from opmix.errors import ConfigError, DataError
from opmix.exporters import EXPORTERS, ExportOptions, export_run


def row(schema):
    match schema:
        case "messages" | "conversations":
            return {schema: [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
        case "sharegpt":
            return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
        case "prompt and completion":
            return {"prompt": "q", "completion": "a"}
        case "instruction and output":
            return {"instruction": "q", "input": "", "output": "a"}
    return {"text": "t"}


@pytest.fixture
def chat_run(make_run, tmp_path):
    def make(**rows):
        for name, schema in rows.items():
            (tmp_path / f"{name}.jsonl").write_text((json.dumps(row(schema)) + "\n") * 50)
        entries = {n: {"train": str(tmp_path / f"{n}.jsonl")} for n in rows}
        run = make_run(mixture=dict.fromkeys(rows, 1 / len(rows)), domains=entries, counts=False)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["rows"] = {n: s for n, s in rows.items() if s != "text"}
        (run / "manifest.json").write_text(json.dumps(manifest))
        return run

    return make


KNOWN = ExportOptions(row_tokens={"": 20.0}, available={"": 10_000})


def test_axolotl_gets_chat_templates(chat_run):
    text = export_run(chat_run(a="messages", b="sharegpt", c="instruction and output"), "axolotl", KNOWN).text
    first, second, third = yaml.safe_load(text)["datasets"]
    assert (first["type"], first["field_messages"]) == ("chat_template", "messages")
    assert second["field_messages"] == "conversations"
    assert second["message_property_mappings"] == {"role": "from", "content": "value"}
    assert third["type"] == "alpaca"
    assert not any("field" in entry for entry in (first, second, third))


def test_trl_gets_the_columns_of_one_kind_of_rows(chat_run):
    text = export_run(chat_run(a="prompt and completion", b="prompt and completion"), "trl", KNOWN).text
    assert [entry["columns"] for entry in yaml.safe_load(text)["datasets"]] == [["prompt", "completion"]] * 2
    with pytest.raises(ConfigError, match="one kind of rows"):
        export_run(chat_run(a="messages", b="text"), "trl", KNOWN)
    with pytest.raises(DataError, match=r"conversations .instruction and output."):
        export_run(chat_run(a="instruction and output", b="instruction and output"), "trl", KNOWN)


def test_interleave_builds_conversations(chat_run):
    text = export_run(chat_run(a="messages", b="messages"), "interleave", KNOWN).text
    namespace = {}
    exec(compile(text, "mix.py", "exec"), namespace)
    first = next(iter(namespace["build"]()))
    assert first == row("messages")


def test_llamafactory_gets_sharegpt_formatting(chat_run):
    result = export_run(chat_run(a="messages", b="sharegpt"), "llamafactory", KNOWN)
    info = json.loads(result.companions["dataset_info.json"])
    assert info["a"]["formatting"] == info["b"]["formatting"] == "sharegpt"
    assert info["a"]["columns"] == {"messages": "messages"}
    assert info["a"]["tags"]["role_tag"] == "role"
    with pytest.raises(ConfigError, match="expected one kind"):
        export_run(chat_run(a="messages", b="text"), "llamafactory", KNOWN)


def test_a_trainer_of_texts_refuses_conversations(chat_run):
    with pytest.raises(DataError, match="torchtitan reads text; convert them"):
        export_run(chat_run(a="messages", b="messages"), "torchtitan", KNOWN)


@pytest.mark.parametrize("to", ["megatron", "streaming", "litdata", "nanotron", "llm-foundry", "olmo-core"])
def test_trainers_of_tokens_are_told_how_to_make_them(chat_run, to):
    result = export_run(chat_run(a="messages", b="messages"), to, KNOWN)
    assert any("chat template and a mask" in note for note in result.notes)


@pytest.mark.parametrize("to", EXPORTERS)
def test_a_folder_with_a_line_break_in_its_name_stays_in_its_comment(make_run, to):
    run = make_run()
    evil = run.parent / "run\nimport os; os.system('touch X')\n#"
    run.rename(evil)
    text = export_run(evil, to, KNOWN).text
    assert all("touch X" not in line or line.startswith("#") for line in text.splitlines())
    if to in ("interleave", "litdata", "streaming", "torchtitan"):
        imported = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import)]
        assert imported == []
