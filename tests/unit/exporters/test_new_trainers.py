"""ms-swift, DataFlex, NeMo and verl: their own languages, and verl's sampler run on a stand-in for its data set."""

import json
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import yaml

from opmix.domain import Source
from opmix.errors import ConfigError, DataError
from opmix.exporters import exporter_for
from opmix.testing.contracts import example_plan


def renamed(plan, names, paths=None):
    domains = [
        replace(d, name=n, source=Source(paths=(p,), format="jsonl", field=d.source.field))
        for d, n, p in zip(plan.domains, names, paths or [d.source.paths[0] for d in plan.domains], strict=True)
    ]
    return replace(plan, domains=tuple(domains))


def test_ms_swift_gets_paths_with_quotes_whole_and_refuses_its_own_signs():
    place = 'data/it\'s "a" $(touch x).jsonl'
    text = exporter_for("ms-swift").export(example_plan(place)).text
    script = f"{text}\nprintf '%s\\n' \"${{SWIFT_ARGS[@]}}\""
    words = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.split("\n")
    assert words[:3] == ["--dataset", place, "data/code.jsonl"]
    assert json.loads(words[words.index("--columns") + 1]) == {"text": "response"}
    for bad in ("data/a#5.jsonl", "data/a:b.jsonl", "data/*.jsonl", "data/a.jsonl.gz"):
        with pytest.raises(DataError, match="--path web=FILE"):
            exporter_for("ms-swift").export(example_plan(bad))


def test_ms_swift_takes_hub_names_and_one_kind_of_rows():
    plan = example_plan()
    hub = replace(plan.domains[0], source=Source(paths=("org/web@abc",), format="hub", config_name="en"))
    made = exporter_for("ms-swift").export(replace(plan, domains=(hub, plan.domains[1])))
    assert "HF::org/web:en" in made.text
    assert "cannot pin" in made.warnings[0]
    split = replace(hub, source=Source(paths=("org/web",), format="hub", split="test"))
    with pytest.raises(DataError, match="reads the split train"):
        exporter_for("ms-swift").export(replace(plan, domains=(split, plan.domains[1])))
    chat = replace(plan.domains[0], rows="messages")
    with pytest.raises(ConfigError, match="one kind"):
        exporter_for("ms-swift").export(replace(plan, domains=(chat, plan.domains[1])))
    both = replace(plan, domains=tuple(replace(d, rows="messages") for d in plan.domains))
    assert "--columns" not in exporter_for("ms-swift").export(both).text


def test_dataflex_s_three_files_agree():
    made = exporter_for("dataflex").export(example_plan())
    content = yaml.safe_load(made.text)
    assert content["dataset"].split(",") == list(json.loads(made.companions["dataset_info.json"]))
    mixer = yaml.safe_load(made.companions[content["components_cfg_file"]])["mixers"][content["component_name"]]
    assert mixer["params"]["proportions"] == content["init_mixture_proportions"] == list(made.weights.values())


def test_nemo_refuses_what_its_component_refuses():
    plan = example_plan()
    with pytest.raises(ConfigError, match="keeps that name"):
        exporter_for("nemo").export(renamed(plan, ["weighted", "code"]))
    with pytest.raises(ConfigError, match="two domains"):
        exporter_for("nemo").export(replace(plan, domains=plan.domains[:1]))


@pytest.fixture
def sampler(monkeypatch):
    """Runs verl's module beside a stand-in for verl."""
    fake = types.ModuleType("verl.experimental.dataset.sampler")
    fake.AbstractSampler = object
    for name in ("verl", "verl.experimental", "verl.experimental.dataset"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    found = {}
    exec(compile(exporter_for("verl").export(example_plan()).text, "verl.py", "exec"), found)

    def made(names):
        return found["MixtureSampler"](types.SimpleNamespace(dataframe={"data_source": names}), {}), found

    return made


def test_verl_s_sampler_keeps_the_shares_at_every_point(sampler):
    names = ["web"] * 7 + ["other"] * 5 + ["code"] * 300
    made, module = sampler(names)
    drawn = list(made)
    assert len(drawn) == len(made) == module["ROWS"]
    counts = dict.fromkeys(module["WEIGHTS"], 0)
    for count, index in enumerate(drawn, 1):
        counts[names[index]] += 1
        assert all(abs(counts[n] - w * count) <= 1 for n, w in module["WEIGHTS"].items())
    web = [i for i in drawn if names[i] == "web"]
    assert all(sorted(web[k : k + 7]) == list(range(7)) for k in range(0, len(web) - 6, 7))  # no row twice in a pass
    assert web[:7] != web[7:14]
    assert list(sampler(names)[0]) == drawn
    assert list(made) != drawn  # a second pass comes in another order
    with pytest.raises(ValueError, match="data_source is 'web'"):
        sampler(["code"])
