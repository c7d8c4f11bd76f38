import json
import shutil
from importlib.util import find_spec

import pytest
import torch
import yaml
from lives import content
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.preflight import validate
from opmix.preflight.checks import Check

from .conftest import texts, write_rows

runner = CliRunner()


@pytest.fixture
def config(corpus, tiny_folder, tmp_path):
    """A configuration without a fault, as a mapping and in search.yaml, and how to check it after a change."""
    content = {
        "model": str(tiny_folder),
        "domains": {
            n: {s: str(corpus / n / f"{s}.jsonl.gz") for s in ("train", "valid")} for n in ("alpha", "beta", "gamma")
        },
        "budget": {"tokens": 75_000},
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 2},
        "probes": {"steps": 10},
    }

    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content))

    def check(**changes) -> list[Check]:
        path.write_text(yaml.safe_dump({**content, **changes}))
        return validate(path).checks

    return content, check


def failures(checks) -> dict[str, str]:
    return {c.name: c.detail for c in checks if c.status == "fail"}


@pytest.mark.usefixtures("config")
def test_a_good_one_is_good_and_costs(tmp_path):
    result = validate(tmp_path / "search.yaml")
    # Adapters reach little of a model that is mostly embeddings, and that is said.
    assert [c for c in result.checks if c.status != "ok" and c.name != "probes"] == []
    assert result.valid
    assert result.cost is not None
    assert (result.cost.probes, result.cost.probe_tokens) == (4, 4 * 10 * 2 * 32)
    assert result.cost.memory_bytes is not None
    assert 0.5e9 < result.cost.memory_bytes < 1.5e9


def test_all_problems_come_at_once(config, corpus, tmp_path):
    content, check = config
    (corpus / "beta" / "train.jsonl.gz").write_bytes(b"\x1f\x8bnot gzip")
    domains = {
        **content["domains"],
        "gone": str(tmp_path / "none.jsonl"),
        "glob": str(tmp_path / "*.nothing"),
        "fieldless": {"train": {"paths": str(corpus / "alpha" / "train.jsonl.gz"), "field": "body"}},
        "bad name!": str(corpus / "alpha" / "valid.jsonl.gz"),
    }
    found = failures(
        check(
            domains=domains,
            budgt={"tokens": 3},
            trainer={"learning_rat": 1, "max_steps": 3},
            model=str(tmp_path / "no-model"),
        )
    )
    assert "unknown key; did you mean 'budget'" in found["settings"]
    assert "cannot be read" in found["domains.beta.train"]
    assert "no such file" in found["domains.gone.train"]
    assert "matches no file" in found["domains.glob.train"]
    assert "no key 'body'" in found["domains.fieldless.train"]
    assert "domain name" in found["domains.bad name!"]
    assert "does not exist" in found["tokenizer"]
    assert "trainer" in found


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"sequence_length": 1024}, "sequence_length", "at most 256"),
        ({"sequence_length": 30_000}, "domains.alpha.valid", "at least two sequences"),
        ({"solve": {"floors": {"alpha": 0.6, "beta": 0.6}}}, "solve", "relax"),
        pytest.param(
            {"solve": {"max_epochs": 1}, "budget": {"tokens": 10**9}}, "solve", "relax", marks=pytest.mark.slow
        ),
        ({"old_mixture": {"alpha": 1}, "solve": {"prior": "current"}}, "solve", "no mass"),
        ({"trainer": {"learning_rate": "fast", "optim": "nonsense"}}, "trainer", "expected a number"),
        pytest.param({"trainer": {"optim": "nonsense"}}, "trainer", "refuses", marks=pytest.mark.slow),
        pytest.param({"trainer": {"lr_scheduler_type": "wsdd"}}, "trainer", "wsdd", marks=pytest.mark.slow),
        ({"probes": {"target_modules": ["nothing"]}}, "model", "matches no layer"),
        ({"proxies": {"count": 2}, "law": "log_linear"}, "probes", "2"),
        ({"sequence_length": 1}, "settings", "greater than or equal to 2"),
        pytest.param(
            {"solve": {"objective": "weighted", "weights": {"alpha": 0, "beta": 0}}},
            "settings",
            "all weights are 0",
            marks=pytest.mark.slow,
        ),
        ({"objective": "sft"}, "objective", "sft, but no domain holds conversations"),
        ({"cache_dir": __file__}, "cache_dir", "nothing can be written there"),
        pytest.param({"trainer": {"adam_epsilon": 0}}, "trainer", "expected above 0", marks=pytest.mark.slow),
    ],
)
def test_what_does_not_fit(config, changes, name, words):
    _, check = config
    found = failures(check(**changes))
    assert words in found[name], found


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("attn_implementation", "nope", "'nope' cannot be had"),
        pytest.param(
            "attn_implementation",
            "flash_attention_2",
            "'flash_attention_2' cannot be had",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it can be had"),
        ),
        pytest.param(
            "device",
            "cuda",
            "'cuda' is not here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is here"),
        ),
    ],
)
def test_what_this_machine_does_not_have(config, tiny_folder, setting, value, words):
    _, check = config
    assert words in failures(check(model={"name": str(tiny_folder), setting: value}))["model"]


def test_a_source_is_as_large_as_it_is_read(config, corpus):
    content, check = config
    cut = {"paths": str(corpus / "alpha" / "train.jsonl.gz"), "max_tokens": 1}
    found = failures(check(domains={**content["domains"], "alpha": {"train": cut}}))
    assert found["domains.alpha"].startswith("1 documents; splitting held-out sets off leaves")


@pytest.mark.slow
def test_constraints_that_hang_on_the_estimate_are_a_warning(config, tmp_path):
    _, check = config
    result = validate(tmp_path / "search.yaml")
    total = sum(s["train"].tokens * 0.95 for s in result.sizes.values())
    checks = check(budget={"tokens": round(total * 1.03)}, solve={"max_epochs": 1})
    assert [c.status for c in checks if c.name == "solve"] == ["warn"]


def test_warnings_of_repetition_and_noise(config, monkeypatch):
    _, check = config
    checks = check(budget={"tokens": 10**7}, sequence_length=256, probes={"steps": 500})
    told = " ".join(c.detail for c in checks if c.status == "warn")
    assert "an equal share of the budget repeats alpha" in told
    assert "a probe repeats alpha" in told
    assert len([c for c in checks if c.status == "warn" and c.name == "domains"]) == 2  # one line a kind
    monkeypatch.setattr("opmix.preflight.held_out.HELD_OUT_SEQUENCES", 64)
    assert "few held-out sequences" in " ".join(c.detail for c in check(sequence_length=256))
    assert not failures(checks)


def test_a_limit_below_the_current_loss_is_said_to_be_uncertain(config):
    _, check = config
    said = [c for c in check(solve={"loss_limits": {"alpha": -99, "beta": 2}}) if c.name == "solve.loss_limits"]
    assert [c.status for c in said] == ["warn"]
    assert "alpha -99 %; whether a mixture can" in said[0].detail
    assert "beta" not in said[0].detail
    assert not [c for c in check(solve={"loss_limits": {"beta": 0}}) if c.name == "solve.loss_limits"]


def test_held_out_text_that_is_trained_on(config, corpus):
    content, check = config
    file = str(corpus / "alpha" / "train.jsonl.gz")
    found = failures(check(domains={**content["domains"], "alpha": {"train": file, "valid": file}}))
    assert "train of alpha and valid of alpha" in found["domains"]
    checks = check(domains={**content["domains"], "delta": file})
    assert any(c.status == "warn" and "train of alpha and train of delta" in c.detail for c in checks)


def test_a_checkpoint_with_missing_shards(config, tiny_folder, tmp_path):
    _, check = config
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "missing" in failures(check(model=str(broken)))["model"]
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors").unlink()
    assert "no weights" in failures(check(model=str(broken)))["model"]


def test_weights_that_are_none_are_told_by_their_header(config, tiny_folder, tmp_path):
    _, check = config
    hollow = tmp_path / "hollow"
    shutil.copytree(tiny_folder, hollow)
    (hollow / "model.safetensors").write_bytes(b"not weights")
    assert "cannot be read" in failures(check(model=str(hollow)))["model"]


def test_a_tokenizer_of_another_model(config, tmp_path):
    from opmix.testing import tiny_tokenizer

    _, check = config
    tiny_tokenizer(vocab_size=700, texts=[r["text"] for n in "xyzuvw" for r in texts(n, 50)]).save_pretrained(
        tmp_path / "other"
    )
    content, _ = config
    found = failures(check(model={"name": content["model"], "tokenizer": str(tmp_path / "other")}))
    assert "embedding has" in found["tokenizer"]


def test_files_that_are_no_configuration(tmp_path):
    path = tmp_path / "x.yaml"
    for text in ("a: [", "- 1", ""):
        path.write_text(text)
        assert [c.name for c in validate(path).checks] == ["file"]
    assert "cannot be read" in validate(tmp_path / "none.yaml").checks[0].detail
    path.write_text("domains: 3\nmodel: [1]\ntrainer: 7\nbudget: {tokens: many}\n")
    assert not validate(path).valid


@pytest.mark.usefixtures("config")
def test_the_command_says_it_all_and_exits_accordingly(tmp_path):
    path = str(tmp_path / "search.yaml")
    good = runner.invoke(app, ["validate", path])
    assert good.exit_code == 0, good.output
    assert "ready: nothing stands in the way" in good.output
    assert "cost: 4 short trainings of 10 steps" in good.output
    bad = runner.invoke(app, ["validate", path, "--set", "sequence_length=999", "--json"])
    assert bad.exit_code == 1
    content = json.loads(bad.stdout)
    assert not content["valid"]
    assert content["domains"]["alpha"]["train"]["documents"] == 100


def test_a_hub_name_without_a_network_is_told(config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _, check = config
    found = failures(check(model="nobody/no-such-model-7"))
    assert "neither a folder here nor reachable" in found["tokenizer"]


def test_domains_without_enough_text(config, tmp_path):
    content, check = config
    small = write_rows(tmp_path / "small.jsonl", [{"text": "one two"}])
    found = failures(check(domains={**content["domains"], "small": str(small)}))
    assert "a sequence has" in found["domains.small.train"]
    assert "at least two sequences" in found["domains.small.valid"]


def test_too_few_documents_to_split_off(config, tmp_path):
    content, check = config
    few = write_rows(tmp_path / "few.jsonl", [{"text": r["text"] * 9} for r in texts("alpha", 12)])
    parts = {"few": {"train": str(few), "holdout": 0.01}, "enough": {"train": str(few), "holdout": 0.3}}
    found = failures(check(domains={**content["domains"], **parts}))
    assert "leaves" in found["domains.few"]
    assert "domains.enough" not in found


@pytest.mark.usefixtures("config")
def test_a_setting_that_is_no_yaml(tmp_path):
    assert "not valid YAML" in failures(validate(tmp_path / "search.yaml", ["seed=["]).checks)["file"]


@pytest.mark.parametrize(
    ("tokenizer", "status", "words"),
    [
        ("nowhere/at-all", "fail", "nowhere/at-all"),
        ("tiny", "ok", "entries"),
        ({"vocab_size": 256}, "fail", "expected at least 257"),
        ({"vocab_size": 258, "special_tokens": ["<a>", "<b>"]}, "fail", "expected at least 259"),
    ],
)
def test_the_tokenizer_of_a_life(tiny_folder, tmp_path, tokenizer, status, words):
    """Found by hostile calls: called ready, and then the life began with an error."""
    told = {**content(), "tokenizer": str(tiny_folder) if tokenizer == "tiny" else tokenizer}
    (tmp_path / "life.yaml").write_text(yaml.safe_dump(told))
    checks = [c for c in validate(tmp_path / "life.yaml").checks if c.name in ("tokenizer", "settings")]
    assert any(c.status == status and words in c.detail for c in checks), checks


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_hidden_layers", 10**6, "1000000 layers; expected at most 10000"),
        ("num_hidden_layers", 2**70, "architecture.num_hidden_layers: "),
        ("vocab_size", 2**70, "architecture.vocab_size: "),
    ],
)
def test_architectures_without_end_are_refused_and_not_built(tmp_path, name, value, words):
    """Found by hostile calls: `validate` built them layer by layer and never ended."""
    told = content()
    told["architecture"] = {**told["architecture"], name: value}
    (tmp_path / "life.yaml").write_text(yaml.safe_dump(told))
    assert any(words in c.detail for c in validate(tmp_path / "life.yaml").checks if c.status == "fail")


def test_a_checkpoint_with_layers_without_end_is_refused_and_not_built(config, tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "deep")
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**told, "num_hidden_layers": 10**6}))
    _, check = config
    assert "1000000 layers" in failures(check(model=str(copy)))["model"]
