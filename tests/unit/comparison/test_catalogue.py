"""The list of methods is whole: every row loads, says what it does, and is written about."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.errors import ConfigError
from opmix.methods.registry import ENTRIES, METHODS, entry_of

DOCS = Path(__file__).parents[3] / "docs" / "methods.md"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_row(entry):
    kind = entry.load()
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.__doc__
    method = entry.make()
    assert hasattr(method, "propose") or hasattr(method, "update")
    assert (entry.training == "online") == (entry.family == "online") == hasattr(method, "update")
    assert (entry.training == "continual") == hasattr(method, "begin")
    assert 20 < len(entry.line) < 120
    assert entry.paper or entry.family == "fixed"
    assert f"`{entry.name}`" in DOCS.read_text()
    with pytest.raises(ConfigError, match=f"{entry.name}.no_such_thing: no such setting"):
        entry.make({"no_such_thing": 1})


def test_every_setting_is_in_the_docs():
    text = DOCS.read_text()
    settings = [(e.name, f.name) for e in ENTRIES if not e.own_search for f in fields(e.load())]
    missing = [(name, key) for name, key in settings if f"`{key}`" not in text and f"`{name}.{key}`" not in text]
    assert len(settings) > 60
    assert missing == []


def test_names_are_unique_and_unknown_ones_are_said():
    assert len(METHODS) == len(ENTRIES)
    with pytest.raises(ConfigError, match="'regmx' is unknown; did you mean 'regmix'"):
        entry_of("regmx")


def test_the_list_is_a_command():
    made = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [m["name"] for m in made] == [e.name for e in ENTRIES]
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"}).stdout
    assert all(e.name in shown for e in ENTRIES)
