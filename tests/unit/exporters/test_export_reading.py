"""Run folders, options and what is refused."""

import json
import subprocess
import sys

import pytest
import yaml
from export_shares import MIXTURE
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.errors import ConfigError, DataError, StoreError
from opmix.exporters import EXPORTERS, ExportOptions, read_plan

runner = CliRunner()


def export(run, name, **options):
    return EXPORTERS[name].export(read_plan(run, ExportOptions(**options)))


def test_damaged_and_missing_folders(tmp_path):
    with pytest.raises(StoreError, match=r"no mixture\.json; expected the --out folder"):
        read_plan(tmp_path)
    (tmp_path / "mixture.json").write_text('{"kind": "search", "mixture": {"a": "much"}}')
    with pytest.raises(StoreError, match=r"mixture\.a"):
        read_plan(tmp_path)
    (tmp_path / "mixture.json").write_text('{"kind": "search", "mixture": {"a": 0.0}}')
    with pytest.raises(StoreError, match="no positive share"):
        read_plan(tmp_path)


def test_options_must_name_domains_of_the_run(make_run):
    with pytest.raises(ConfigError, match="unknown domain 'wbe'") as caught:
        read_plan(make_run(), ExportOptions(paths={"wbe": "x"}, available={"kode": 3}))
    assert len(caught.value.problems) == 2


def test_repetition_beyond_what_the_run_allows_is_refused(make_run, corpus):
    domains = {n: {"train": str(corpus.folder / f"{n}.jsonl"), "max_epochs": 2} for n in MIXTURE}
    assert read_plan(make_run(domains=domains, budget=100_000)).epochs()
    with pytest.raises(ConfigError, match=r"repeat it .* times and the run allows 2"):
        read_plan(make_run(domains=domains, budget=1_000_000))
    with pytest.raises(ConfigError, match="allows 3"):
        read_plan(make_run(solve={"max_epochs": 3}), ExportOptions(tokens=10**6))


def test_documents_held_out_of_the_training_files_are_counted_and_told(make_run, corpus):
    domains = {n: str(corpus.folder / f"{n}.jsonl") for n in MIXTURE}
    run = make_run(domains=domains)
    content = json.loads((run / "mixture.json").read_text())
    for counts in content["domains"].values():
        counts["valid"] = counts["test"] = {"tokens": 100, "documents": 500, "bytes": 1}
    (run / "mixture.json").write_text(json.dumps(content))
    plan = read_plan(run)
    assert plan.domains[0].tokens == corpus.counts["web"]["tokens"] + 200
    assert plan.domains[0].held_out == pytest.approx(1 / 3)
    assert "web (33%)" in EXPORTERS["trl"].export(plan).text
    assert "held out" not in EXPORTERS["megatron"].export(plan).text


def test_trainers_that_cannot_repeat_one_domain_say_so(make_run):
    run = make_run(budget=500_000)  # four times the mathematics, less of the rest
    assert "not one domain alone" in export(run, "trl").warnings[0]
    assert "cannot repeat one domain alone" in export(run, "axolotl").warnings[0]
    assert "passes" in export(run, "litdata").warnings[0]
    for name in ("trl", "axolotl", "litdata"):
        assert export(run, name, tokens=50_000).warnings == ()
    assert "whole documents" in export(run, "axolotl", tokens=1_000).warnings[0]


def test_token_files_and_plain_text_are_refused_where_text_rows_are_read(make_run, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one document")
    domains = {n: str(tmp_path / "texts") for n in MIXTURE}
    run = make_run(domains=domains)
    assert "'sample_by': 'document'" in export(run, "interleave").text
    assert "'sample_by': 'document'" in export(run, "torchtitan").text
    for name in ("trl", "axolotl", "llamafactory"):
        with pytest.raises(DataError, match="every line for a document"):
            export(run, name)
    run = make_run(domains={n: {"train": {"paths": ["t.bin"], "format": "bin"}} for n in MIXTURE})
    with pytest.raises(DataError, match="token ids"):
        export(run, "interleave")
    sources = yaml.safe_load(export(run, "olmo-core").text)["sources"]
    assert sources[0]["paths"] == ["t.bin"]  # bare token ids are what OLMo-core reads


def test_hub_names_folders_and_globs(make_run, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"body": "x"}\n')
    domains = {
        "web": {"train": {"paths": ["org/web@v1"], "format": "hub", "config_name": "en", "field": "body"}},
        "code": {"train": {"paths": [str(folder)], "field": "body"}},
        "math": {"train": {"paths": ["m/*.jsonl.gz"], "field": "body"}},
        "poems": "p.jsonl",
    }
    run = make_run(domains=domains)
    assert "'path': 'org/web', 'name': 'en', 'revision': 'v1'" in export(run, "interleave", base=tmp_path).text
    entries = {e["path"]: e for e in yaml.safe_load(export(run, "axolotl", base=tmp_path).text)["datasets"]}
    assert entries["org/web"]["name"] == "en"
    assert entries[str(folder)]["data_files"] == [f"{folder}/**/*.jsonl"]
    assert entries[str(tmp_path / "m")]["data_files"] == [f"{tmp_path}/m/*.jsonl.gz"]
    with pytest.raises(DataError, match="nothing else in it"):
        export(run, "llamafactory")  # it opens no pattern and nothing compressed
    result = export(run, "llamafactory", paths={"math": "m.jsonl"})
    info = json.loads(result.companions["dataset_info.json"])
    assert info == {
        "web": {"hf_hub_url": "org/web", "subset": "en", "split": "train", "columns": {"prompt": "body"}},
        "code": {"file_name": str(folder), "columns": {"prompt": "body"}},
        "math": {"file_name": "m.jsonl", "columns": {"prompt": "body"}},
    }
    placed = yaml.safe_load(export(run, "trl", paths={"web": "hub:o/w", "math": "m.parquet"}).text)["datasets"]
    assert placed[0]["path"] == "o/w"
    assert placed[2] == {
        "path": "parquet",
        "data_files": ["m.parquet"],
        "split": "train",
        "columns": ["body"],
        "fraction": placed[2]["fraction"],
    }


def test_trl_needs_one_column(make_run):
    domains = {n: {"train": {"paths": [f"{n}.jsonl"], "field": n}} for n in MIXTURE}
    with pytest.raises(ConfigError, match="one kind of rows"):
        export(make_run(domains=domains), "trl")


def test_names_that_a_format_cannot_hold(fitted_run):
    (fitted_run / "mixture.json").write_text('{"kind": "fit", "mixture": {"a,b": 0.5, "A": 0.25, "a": 0.25}}')
    placed = {"paths": {"": "x.jsonl"}, "row_tokens": {"": 3}}
    with pytest.raises(ConfigError, match="commas"):
        export(fitted_run, "llamafactory", **placed)
    with pytest.raises(ConfigError, match="not distinct"):
        export(fitted_run, "torchtitan", **placed)


def test_the_command_writes_files_and_lists_trainers(make_run, tmp_path):
    run = make_run()
    out = tmp_path / "out" / "mixture.yaml"
    done = runner.invoke(app, ["export", str(run), "--to", "llamafactory", "--out", str(out), "--tokens", "2e4"])
    assert done.exit_code == 0, done.output
    assert "Budget: 20,000 tokens" in out.read_text()
    assert set(json.loads((out.parent / "dataset_info.json").read_text())) == {"web", "code", "math"}
    (out.parent / "dataset_info.json").write_text('{"mine": {}}')
    again = runner.invoke(app, ["export", str(run), "--to", "llamafactory", "--out", str(out)])
    assert isinstance(again.exception, ConfigError)
    assert json.loads((out.parent / "dataset_info.json").read_text()) == {"mine": {}}
    printed = runner.invoke(app, ["export", str(run), "--to", "megatron", "--path", "data/{domain}", "--path", "web=w"])
    assert "  0.500000000 w\n  0.300000000 data/code\n" in printed.stdout
    listed = runner.invoke(app, ["export", "--list"])
    assert all(name in listed.stdout for name in EXPORTERS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--to", "trl"],
        ["RUN"],
        ["RUN", "--to", "trl", "--tokens", "many"],
        ["RUN", "--to", "trl", "--unit", "bytes"],
        ["RUN", "--to", "trl", "--path", "web"],
        ["RUN", "--to", "trl", "--row-tokens", "web=-1"],
    ],
)
def test_bad_arguments_are_our_errors(make_run, arguments):
    run = str(make_run())
    done = runner.invoke(app, ["export", *(run if a == "RUN" else a for a in arguments)])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.slow
def test_exporting_loads_no_torch(make_run, tmp_path):
    arguments = ["export", str(make_run()), "--to", "trl", "--out", str(tmp_path / "m.yaml")]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nimport opmix.trackers\nfrom opmix.cli.app import app\n"
        f"r = CliRunner().invoke(app, {arguments!r})\nassert r.exit_code == 0, r.output\n"
        "assert not {'torch', 'transformers', 'datasets', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_real_search_exports_to_every_trainer(tmp_path):
    import opmix
    from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

    names, tokenizer = ["web", "code", "math"], tiny_tokenizer()
    paths = dict(write_toy_domains(tmp_path / "texts", names, num_documents=120, seed=0))
    opmix.search(
        tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64),
        tokenizer,
        {name: str(path) for name, path in paths.items()},
        budget=20_000,
        old_mixture={"web": 0.6, "code": 0.4},
        sequence_length=32,
        trainer={"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        probes={"steps": 6, "rank": 4},
        proxies={"eval_sequences": 8},
        decision={"draws": 30},
        cache_dir=str(tmp_path / "cache"),
        out=tmp_path / "run",
    )
    mixture = json.loads((tmp_path / "run" / "mixture.json").read_text())["mixture"]
    plan = read_plan(tmp_path / "run")
    assert {d.name: d.share for d in plan.domains} == pytest.approx({n: s for n, s in mixture.items() if s >= 1e-6})
    assert plan.epochs()
    assert all(d.held_out == pytest.approx(0.1, abs=0.08) for d in plan.domains)
    for exporter in EXPORTERS.values():
        assert exporter.export(plan).text.startswith("# ")
