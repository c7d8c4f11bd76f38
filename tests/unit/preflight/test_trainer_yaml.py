"""A search from somebody's training YAML, and its answer written back between their comments."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import load_config
from opmix.errors import ConfigError, DataError
from opmix.exporters import exporter_for, read_plan
from opmix.scaffold import read_trainer, search_from_trainer
from opmix.scaffold.write_back import write_back

AXOLOTL = """\
# my training, and why it is as it is
base_model: org/model   # the one from March
load_in_4bit: true
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
sequence_len: 512
learning_rate: 2e-4
micro_batch_size: 4
gradient_accumulation_steps: 2

datasets:
  # crawled in May
  - path: texts/web.jsonl
    ds_type: json
    type: completion   # keep
    weight: 0.5  # guessed
  - {path: texts/code.jsonl, ds_type: json, type: completion}
  - path: texts/math.jsonl
    ds_type: json
    type: completion
    field: body

num_epochs: 3  # was 2
"""
LLAMA = """\
model_name_or_path: org/model
stage: sft
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset_dir: data   # ours
dataset: web,code,math  # three
cutoff_len: 256
learning_rate: 1.0e-4
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("web", "code", "math"):
        for folder, row in (
            ("texts", {"text": name, "body": name}),
            ("data", {"messages": [{"role": "user", "content": name}]}),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sharegpt = {"formatting": "sharegpt", "columns": {"messages": "messages"}}
    info = {n: {"file_name": f"{n}.jsonl", **sharegpt} for n in ("web", "code", "math")}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "axolotl.yaml").write_text(AXOLOTL)
    (tmp_path / "llama.yaml").write_text(LLAMA)
    return tmp_path


def searched(place, file, mixture, budget=60_000):
    """The folder of a search that `init --from` began and that came to `mixture`."""
    config, _ = search_from_trainer(place / file, place / "search.yaml", tokens=budget, force=True)
    settings = yaml.safe_load((place / "search.yaml").read_text())
    sizes = {"train": {"tokens": 100_000, "documents": 1000, "bytes": 1}}
    content = {
        "schema": 1,
        "kind": "search",
        "mixture": mixture,
        "cost": {"stage_tokens": budget},
        "domains": {
            n: {**sizes, **{s: {"tokens": 0, "documents": 0, "bytes": 0} for s in ("valid", "test")}}
            for n in config.domains
        },
    }
    run = place / "run"
    run.mkdir(exist_ok=True)
    (run / "mixture.json").write_text(json.dumps(content))
    rows = {n: "messages" for n, d in config.domains.items() if d.kind == "chat"}
    manifest = {"command": "search", "config": settings, "base": str(place), **({"rows": rows} if rows else {})}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_axolotl_s_model_adapters_and_data_become_a_search(place):
    result = CliRunner().invoke(app, ["init", "--from", "axolotl.yaml", "--tokens", "2e6", "--out", "search.yaml"])
    assert result.exit_code == 0, result.output
    config = load_config(place / "search.yaml")
    assert config.model.name == "org/model"
    assert (config.probes.rank, config.probes.alpha, config.probes.target_modules) == (8, 16, ("q_proj", "v_proj"))
    assert (config.sequence_length, config.budget.tokens) == (512, 2_000_000)
    assert dict(config.trainer) == {
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    assert list(config.domains) == ["web", "code", "math"]
    assert config.domains["math"].train.field == "body"
    assert (place / config.domains["web"].train.paths[0]).exists()
    assert "unquantised" in result.output


def test_llama_factory_s_data_are_those_of_dataset_info(place):
    config, found = search_from_trainer(place / "llama.yaml", place / "search.yaml", tokens=1e6)
    assert found.trainer == "llamafactory"
    assert config.objective == "sft"
    assert [d.kind for d in config.domains.values()] == ["chat"] * 3
    assert config.probes.target_modules is None  # `all`
    assert config.domains["web"].train.paths[0].endswith("data/web.jsonl")


def test_the_answer_stands_between_the_comments(place):
    run = searched(place, "axolotl.yaml", {"web": 0.6, "code": 0.3, "math": 0.1})
    (place / "axolotl.yaml").write_text(AXOLOTL)
    result = CliRunner().invoke(app, ["export", str(run), "--into", str(place / "axolotl.yaml"), "--base", str(place)])
    assert result.exit_code == 0, (result.output, result.exception)
    text = (place / "axolotl.yaml").read_text()
    told = yaml.safe_load(text)
    wanted = dict(exporter_for("axolotl").export(read_plan(run)).weights)
    assert {d["path"].split("/")[1].split(".")[0]: d["weight"] for d in told["datasets"]} == pytest.approx(wanted)
    for kept in (
        "# my training, and why it is as it is",
        "# the one from March",
        "# crawled in May",
        "# keep",
        "# guessed",
        "# was 2",
    ):
        assert kept in text
    old, new = AXOLOTL.splitlines(), text.splitlines()
    assert sum(line not in new for line in old) == 3  # web's weight, code's line, num_epochs
    assert {k: v for k, v in told.items() if k not in ("datasets", "num_epochs", "shuffle_merged_datasets")} == {
        k: v for k, v in yaml.safe_load(AXOLOTL).items() if k not in ("datasets", "num_epochs")
    }
    write_back(run, place / "axolotl.yaml")
    assert (place / "axolotl.yaml").read_text() == text  # again is the same


def test_a_dataset_without_a_share_is_commented_out(place):
    run = searched(place, "axolotl.yaml", {"web": 0.0, "code": 0.7, "math": 0.3})
    write_back(run, place / "axolotl.yaml")
    text = (place / "axolotl.yaml").read_text()
    assert [d["path"] for d in yaml.safe_load(text)["datasets"]] == ["texts/code.jsonl", "texts/math.jsonl"]
    assert "# no share: - path: texts/web.jsonl" in text


def test_llama_factory_gets_names_and_probabilities_in_one_order(place):
    run = searched(place, "llama.yaml", {"web": 0.0, "code": 0.7, "math": 0.3})
    write_back(run, place / "llama.yaml")
    text = (place / "llama.yaml").read_text()
    told = yaml.safe_load(text)
    assert told["dataset"] == "code,math"
    assert [float(p) for p in told["interleave_probs"].split(",")] == pytest.approx([0.7, 0.3])
    assert "# three" in text
    assert "# ours" in text


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda t: t.replace("base_model", "bose_model"), ConfigError, "which is it"),
        (lambda t: t.replace("type: completion   # keep", "type: orpo"), DataError, "'orpo'"),
        (lambda t: t.replace("texts/web.jsonl", "texts/nowhere.jsonl"), DataError, "nowhere"),
        (lambda t: t.replace("code.jsonl", "web.jsonl"), ConfigError, "twice"),
        (lambda t: "a: [", DataError, "as YAML"),
        (
            lambda t: "base_model: m\ndatasets:\n- {path: texts/web.jsonl, type: completion}\n",
            ConfigError,
            "at least two",
        ),
    ],
)
def test_what_cannot_be_searched_is_told(place, change, error, said):
    (place / "axolotl.yaml").write_text(change(AXOLOTL))
    with pytest.raises(error, match=said):
        read_trainer(place / "axolotl.yaml")


def test_tokens_are_asked_for_and_files_are_not_replaced(place):
    with pytest.raises(ConfigError, match="--tokens: missing"):
        search_from_trainer(place / "axolotl.yaml", place / "search.yaml", tokens=None)
    (place / "search.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        search_from_trainer(place / "axolotl.yaml", place / "search.yaml", tokens=1e6)


def test_another_file_s_mixture_is_refused_and_nothing_is_written(place):
    run = searched(place, "axolotl.yaml", {"web": 0.5, "code": 0.5, "math": 0.0})
    other = AXOLOTL.replace("texts/code.jsonl", "data/code.jsonl").replace("texts/web.jsonl", "texts/code.jsonl")
    (place / "axolotl.yaml").write_text(other.replace("data/code.jsonl", "data/math.jsonl"))
    before = (place / "axolotl.yaml").read_bytes()
    with pytest.raises(ConfigError, match="no dataset for domain 'web'"):
        write_back(run, place / "axolotl.yaml")
    assert (place / "axolotl.yaml").read_bytes() == before
