import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import load_config
from opmix.data.sources import resolve
from opmix.errors import ConfigError, DataError
from opmix.preflight import validate
from opmix.scaffold import first_config

from .conftest import texts, write_rows

runner = CliRunner()


@pytest.mark.slow
def test_search_runs_what_init_wrote(corpus, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (corpus / "gamma").rename(tmp_path / "gamma")  # two domains and less text are enough here
    for name in ("alpha", "beta"):
        write_rows(corpus / name / "train.jsonl.gz", texts(name, 60))
    wrote = runner.invoke(app, ["init", "data", "--model", str(tiny_folder), "--tokens", "2e5"])
    assert wrote.exit_code == 0, wrote.output
    assert "next: opmix search search.yaml" in wrote.output
    config = load_config(tmp_path / "search.yaml")
    assert set(config.domains) == {"alpha", "beta"}
    assert config.budget.tokens == 200_000
    assert config.domains["alpha"].train.paths == ("data/alpha/train.jsonl.gz",)
    checked = runner.invoke(app, ["validate", "search.yaml", "--json"])
    assert checked.exit_code == 0, checked.output
    found = runner.invoke(app, ["search", "search.yaml", "--out", "run", "--json"])
    assert found.exit_code == 0, found.output
    answer, estimate = json.loads(found.stdout), json.loads(checked.stdout)["cost"]
    # What was said before is what was done: probes to the token, FLOPs nearly; candidates come on top where they are trained.
    done, said = answer["cost"]["tokens"]["probes"], estimate["probe_tokens"]
    looked = [0, 2, 3, 4]  # two candidates, and once more where that leaves it open
    assert done in [said + more * said // estimate["probes"] for more in looked]
    assert sum(answer["cost"]["flops"].values()) == pytest.approx(estimate["flops"] * done / said, rel=0.25)
    for name, splits in json.loads(checked.stdout)["domains"].items():
        true = sum(answer["domains"][name][split]["tokens"] for split in ("train", "test"))
        assert splits["train"]["tokens"] == pytest.approx(true, rel=0.05)


def test_without_a_model_a_placeholder_is_written_and_said(corpus, tmp_path):
    out = tmp_path / "conf" / "s.yaml"
    said = runner.invoke(app, ["init", str(corpus), "--out", str(out)])
    assert said.exit_code == 0, said.output
    assert "No model was given" in said.output
    assert "REPLACE THIS" in out.read_text()
    assert load_config(out).domains["alpha"].train.paths == (str(corpus / "alpha" / "train.jsonl.gz"),)
    checks = validate(out).checks
    assert [c.detail for c in checks if c.status == "fail"] == ["still the placeholder of `opmix init`"]


def test_a_file_is_not_replaced_unasked(corpus, tmp_path):
    out = tmp_path / "s.yaml"
    out.write_text("precious: true\n")
    with pytest.raises(ConfigError, match="--force"):
        first_config(corpus, out)
    assert out.read_text() == "precious: true\n"
    first_config(corpus, out, force=True)
    assert "domains" in out.read_text()


def test_every_format_and_weird_names(tmp_path, monkeypatch):
    data = tmp_path / "data"
    rows = texts("alpha", 60)
    write_rows(data / "a b [1]" / "train.jsonl", [{"content": r["text"], "id": "7"} for r in rows])
    (data / "#zst: *").mkdir()
    plain = write_rows(data / "x.jsonl", rows)
    (data / "#zst: *" / "x.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    plain.unlink()
    for shard in range(3):
        (data / "null").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"text": [r["text"] for r in rows]}), data / "null" / f"train-{shard:05d}-of-00003.parquet"
        )
    for i, row in enumerate(rows):
        path = data / "книги" / "sub" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"])
    for i in range(60):
        write_rows(data / "~code" / f"{i}.py", rows[i : i + 1])
    (data / "42").mkdir()
    np.save(data / "42" / "ids.npy", np.arange(5000, dtype=np.uint16))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "search.yaml"
    result = first_config(data.relative_to(tmp_path), out)
    assert not result.left_out
    config = load_config(out)
    assert set(config.domains) == {"42", "a_b_1", "code", "domain", "null", "zst"}
    assert config.domains["a_b_1"].train.field == "content"
    assert config.domains["code"].train.format == "text"
    found = {n: len(resolve(d.located(tmp_path).train)) for n, d in config.domains.items()}
    assert found == {"42": 1, "a_b_1": 1, "code": 60, "domain": 60, "null": 3, "zst": 1}
    assert len(config.domains["domain"].train.paths) == 1  # a glob, not sixty lines


def test_arrow_folders(tmp_path):
    import datasets

    rows = texts("alpha", 60)
    column = {"body": [r["text"] for r in rows]}
    datasets.Dataset.from_dict(column).save_to_disk(str(tmp_path / "data" / "one"))
    both = datasets.DatasetDict(train=datasets.Dataset.from_dict(column), validation=datasets.Dataset.from_dict(column))
    both.save_to_disk(str(tmp_path / "data" / "two"))
    first_config(tmp_path / "data", tmp_path / "s.yaml")
    config = load_config(tmp_path / "s.yaml")
    assert config.domains["one"].train.field == "body"
    assert config.domains["two"].valid is not None
    assert config.domains["two"].valid.split == "validation"
    assert not [c for c in validate(tmp_path / "s.yaml").checks if c.name.startswith("domains.") and c.status == "fail"]


def hostile(data):
    write_rows(data / "mixed" / "a.jsonl", texts("alpha", 30))
    write_rows(data / "mixed" / "b.jsonl", [{"content": "x y z"}] * 30)
    write_rows(data / "rows" / "a.jsonl", [{"text": "a"}, {"body": "b"}])
    write_rows(data / "numbers" / "a.jsonl", [{"n": 1}])
    write_rows(data / "chats" / "a.jsonl.gz", [{"messages": [{"role": "user", "content": "hi"}]}])
    write_rows(data / "sharegpt" / "a.jsonl", [{"conversations": [{"from": "human", "value": "hi"}]}])
    for name, content in {"cut": b"\x1f\x8b\x08\x00broken", "binary": bytes(range(256))}.items():
        (data / name).mkdir()
        (data / name / ("a.jsonl.gz" if name == "cut" else "a.txt")).write_bytes(content)
    (data / "empty").mkdir()
    (data / "empty" / "a.jsonl").write_text("")
    (data / "array").mkdir()
    (data / "array" / "a.json").write_text('[{"text": "a"}]')
    write_rows(data / "lonely" / "valid.jsonl", texts("alpha", 5))


def test_what_cannot_be_read_is_left_out_with_its_reason(corpus, tmp_path):
    hostile(corpus)
    result = first_config(corpus, tmp_path / "s.yaml")
    assert {each.name for each in result.domains} == {"alpha", "beta", "gamma"}
    reasons = {each.label: each.problem for each in result.left_out}
    for label, words in {
        "mixed": "mixed schemas",
        "rows": "no key holds text",
        "numbers": "no key holds text",
        "chats": "no assistant turn",
        "sharegpt": "no assistant turn",
        "cut": "cannot be read",
        "binary": "not UTF-8",
        "empty": "no key holds text",
        "array": "1 document",
        "lonely": "only valid",
    }.items():
        assert any(word in reasons[label] for word in words.split("|")), (label, reasons[label])
    text = (tmp_path / "s.yaml").read_text()
    assert "# left out: chats" in text
    assert set(load_config(tmp_path / "s.yaml").domains) == {"alpha", "beta", "gamma"}


def test_too_few_domains_are_refused_with_all_reasons(tmp_path):
    data = tmp_path / "data"
    hostile(data)
    with pytest.raises(ConfigError) as error:
        first_config(data, tmp_path / "s.yaml")
    assert len(error.value.problems) == 11
    assert not (tmp_path / "s.yaml").exists()
    write_rows(tmp_path / "one" / "train.jsonl", texts("alpha", 10))
    with pytest.raises(ConfigError, match="opmix discover"):
        first_config(tmp_path / "one", tmp_path / "s.yaml")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no data"):
        first_config(tmp_path / "void", tmp_path / "s.yaml")
    assert isinstance(runner.invoke(app, ["init", str(data), "--tokens", "-3"]).exception, ConfigError)


def test_a_name_that_is_no_text_is_left_out(corpus, tmp_path):
    bad = os.fsencode(corpus) + b"/\xff\xfe"
    try:
        os.mkdir(bad)  # noqa: PTH102
    except OSError:
        pytest.skip("this file system takes no such name")
    os.replace(corpus / "gamma" / "train.jsonl.gz", bad + b"/train.jsonl.gz")  # noqa: PTH105
    result = first_config(corpus, tmp_path / "s.yaml")
    assert {each.name for each in result.domains} == {"alpha", "beta"}
    assert len(result.left_out) == 2


def test_a_model_that_cannot_be_loaded_is_a_note(corpus, tmp_path):
    result = first_config(corpus, tmp_path / "s.yaml", model=str(tmp_path / "none"))
    assert "does not exist" in result.notes[0]
    assert load_config(tmp_path / "s.yaml").model.name == str(tmp_path / "none")


def test_few_documents_get_a_larger_holdout(tmp_path):
    for name in ("alpha", "beta"):
        write_rows(tmp_path / "data" / name / "a.jsonl", [{"text": r["text"] * 9} for r in texts(name, 20)])
    write_rows(tmp_path / "data" / "tiny" / "a.jsonl", texts("tiny", 2))
    result = first_config(tmp_path / "data", tmp_path / "s.yaml")
    assert "too few to split" in result.left_out[0].problem
    assert {d.holdout for d in load_config(tmp_path / "s.yaml").domains.values()} <= {0.05, 0.1, 0.2, 0.3}
    assert not [c for c in validate(tmp_path / "s.yaml").checks if "leaves" in c.detail]


def test_here_is_the_default_folder_and_relative_paths_follow_the_file(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    assert runner.invoke(app, ["init"]).exit_code == 0
    assert load_config(corpus / "search.yaml").domains["beta"].train.paths == ("beta/train.jsonl.gz",)
    (corpus / "configs").mkdir()
    assert runner.invoke(app, ["init", ".", "--out", "configs/s.yaml"]).exit_code == 0
    config = load_config(corpus / "configs" / "s.yaml")
    assert config.domains["beta"].train.paths == ("../beta/train.jsonl.gz",)
    assert resolve(config.domains["beta"].located(corpus / "configs").train)


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.mark.slow
def test_conversations_are_domains_too(tmp_path, tiny_folder):
    for name in ("alpha", "beta"):
        rows = [r["text"].split(". ") for r in texts(name, 600)]
        turns = [[{"role": "user", "content": r[0]}, {"role": "assistant", "content": r[-1]}] for r in rows]
        write_rows(tmp_path / "data" / name / "train.jsonl.gz", [{"messages": t} for t in turns])
    pairs = [{"prompt": r["text"][:20], "completion": r["text"][20:]} for r in texts("gamma", 600)]
    write_rows(tmp_path / "data" / "gamma.jsonl", pairs)
    out = tmp_path / "s.yaml"
    result = first_config(tmp_path / "data", out, model=str(tiny_folder))
    assert not result.left_out, result.left_out
    config = load_config(out)
    assert {d.kind for d in config.domains.values()} == {"chat"}
    sizes = result.domains[0].sizes["train"]
    assert 0 < sizes.tokens < sizes.row_tokens
    assert any("chat template" in c.detail for c in validate(out).checks if c.status == "fail")
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    checks = validate(out, [f"model.chat_template={tmp_path / 'chat.jinja'}"]).checks
    assert not [c for c in checks if c.status == "fail"], checks
    assert config.objective == "sft"
    assert config.sequence_length >= 2 * sizes.row_tokens / sizes.documents
    told = validate(out, ["objective=causal_lm"]).checks
    assert any(c.name == "objective" and c.status == "fail" for c in told)


def test_a_folder_of_targets_and_named_ones_are_what_the_mixture_is_for(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(corpus / "targets" / "manual-dev.jsonl", texts("alpha", 30, seed=2))
    write_rows(corpus / "targets" / "manual-test.jsonl", texts("alpha", 30, seed=3))
    rows = [{"question": f"{i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(9)]
    (corpus / "targets" / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bodies = [{"id": str(i), "body": f"words of document {i} " * 9} for i in range(30)]
    (tmp_path / "alpha.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bodies))
    wrote = runner.invoke(app, ["init", "data", "--target", "alpha.jsonl"])
    assert wrote.exit_code == 0, wrote.output
    assert "targets, never trained on: exam, manual, target_alpha" in wrote.output
    config = load_config(tmp_path / "search.yaml")
    assert set(config.domains) == {"alpha", "beta", "gamma"}
    assert config.targets["manual"].test.paths == ("data/targets/manual-test.jsonl",)
    assert config.targets["target_alpha"].valid.field == "body"
    assert "the right option of each question" in (tmp_path / "search.yaml").read_text()
    missing = runner.invoke(app, ["init", "data", "--target", "nowhere.jsonl", "--force"])
    assert isinstance(missing.exception, DataError)
    assert "nowhere.jsonl: no such file" in str(missing.exception)


@pytest.mark.parametrize("kind", ["text", pytest.param("chats", marks=pytest.mark.slow)])
def test_validate_does_not_criticise_what_init_wrote(kind, tmp_path, tiny_folder):
    from opmix.preflight import validate
    from opmix.testing import write_toy_chats, write_toy_domains

    if kind == "text":
        write_toy_domains(tmp_path / "data", ["web", "code"], 400)
    else:
        write_toy_chats(tmp_path / "data", {"math": 2, "talk": 3}, 2500)
    model = tiny_folder if kind == "text" else None
    first_config(tmp_path / "data", tmp_path / "search.yaml", model=None if model is None else str(model))
    told = [c.detail for c in validate(tmp_path / "search.yaml").checks if c.status == "warn" and c.name == "domains"]
    assert told == []
