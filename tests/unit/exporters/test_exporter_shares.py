"""Drawn as each trainer draws, the exported numbers give the mixture in tokens."""

import gzip

import datasets
import numpy as np
import pytest
import yaml
from export_shares import MIXTURE

from opmix.exporters import EXPORTERS, ExportOptions, read_plan

WANTED = {name: share for name, share in MIXTURE.items() if share}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def shares_of(texts):
    """Token shares of documents, told from their words."""
    tokens = dict.fromkeys(WANTED, 0)
    for text in texts:
        words = text.split()
        tokens[words[0]] += len(words)
    total = sum(tokens.values())
    return {name: count / total for name, count in tokens.items()}, total


def near(shares, tolerance=0.01):
    assert shares == pytest.approx(WANTED, abs=tolerance)


def load(entry):
    return datasets.load_dataset("json", data_files=entry, split="train")


# Up to 0.8 and 12.5 epochs; 2,261 and 33,914 random draws. At the smaller, other seeds reach 0.02.
@pytest.mark.parametrize("budget", [100_000, pytest.param(1_500_000, marks=pytest.mark.slow)])
def test_the_interleaved_dataset_has_the_mixture_within_one_percent(make_run, budget):
    result = EXPORTERS["interleave"].export(read_plan(make_run(budget=budget, seed=3)))
    module = {}
    exec(compile(result.text, "mixture.py", "exec"), module)
    mixed = module["build"]()
    assert len(mixed) == module["ROWS"]
    shares, total = shares_of(mixed["text"])
    near(shares)
    assert total == pytest.approx(budget, rel=0.03)
    assert shares_of(module["build"]()["text"]) == (shares, total)


@pytest.mark.slow
def test_the_interleaved_stream_has_the_mixture_as_well(make_run):
    module = {}
    exec(
        compile(EXPORTERS["interleave"].export(read_plan(make_run(budget=300_000))).text, "mixture.py", "exec"), module
    )
    shares, _ = shares_of(row["text"] for row in module["build"](streaming=True))
    near(shares, 0.02)  # 7,300 random draws


@pytest.mark.slow
def test_without_sizes_the_interleaved_dataset_ends_with_the_last_domain(fitted_run, corpus):
    options = ExportOptions(
        paths={"": str(corpus.folder / "{domain}.jsonl")},
        row_tokens={n: c["tokens"] / c["documents"] for n, c in corpus.counts.items()},
    )
    module = {}
    exec(compile(EXPORTERS["interleave"].export(read_plan(fitted_run, options)).text, "mixture.py", "exec"), module)
    shares, _ = shares_of(module["build"]()["text"])
    near(shares, 0.02)  # 2,200 random draws of long documents


def test_trl_takes_the_first_rows_that_keep_the_fractions(make_run, corpus):
    budget = 500_000
    content = yaml.safe_load(EXPORTERS["trl"].export(read_plan(make_run(budget=budget))).text)
    parts = [load(e["data_files"]) for e in content["datasets"]]
    weights = np.array([e["fraction"] for e in content["datasets"]])
    rows = min(len(p) / w for p, w in zip(parts, weights / weights.sum(), strict=True))
    kept = [p.select(range(round(w * rows))) for p, w in zip(parts, weights / weights.sum(), strict=True)]
    shares, total = shares_of(datasets.concatenate_datasets(kept)["text"])
    near(shares)
    assert total * content["num_train_epochs"] == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("budget", [60_000, 500_000])
def test_axolotl_keeps_a_part_of_each(make_run, budget):
    content = yaml.safe_load(EXPORTERS["axolotl"].export(read_plan(make_run(budget=budget))).text)
    kept = []
    for entry in content["datasets"]:
        assert 0 < entry["weight"] <= 1
        part = load(entry["path"])
        kept.append(part.shuffle(seed=0).select(range(max(1, int(len(part) * entry["weight"])))))
    shares, total = shares_of(datasets.concatenate_datasets(kept)["text"])
    near(shares)
    assert total * content["num_epochs"] == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("budget", [60_000, pytest.param(1_500_000, marks=pytest.mark.slow)])
def test_llamafactory_interleaves(make_run, budget):
    content = yaml.safe_load(EXPORTERS["llamafactory"].export(read_plan(make_run(budget=budget))).text)
    strategy = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}[content["mix_strategy"]]
    plan = read_plan(make_run(budget=budget))
    parts = [load(d.source.paths[0]) for d in plan.domains]
    probabilities = [float(p) for p in content["interleave_probs"].split(",")]
    mixed = datasets.interleave_datasets(parts, probabilities=probabilities, seed=1, stopping_strategy=strategy)
    shares, total = shares_of(mixed["text"])
    near(shares, 0.015)  # one short pass of random draws
    assert total * content["num_train_epochs"] == pytest.approx(budget, rel=0.1)


def test_olmo_core_has_room_for_what_it_asks(make_run, corpus):
    plan = read_plan(make_run(budget=500_000))
    for entry in yaml.safe_load(EXPORTERS["olmo-core"].export(plan).text)["sources"]:
        tokens = corpus.counts[entry["source_name"]]["tokens"]
        assert tokens * entry.get("max_repetition_ratio", 1.0) >= entry["target_ratio"] * plan.budget


def test_streaming_draws_exactly_the_budget(make_run):
    plan = read_plan(make_run(budget=320_000))
    dataset = yaml.safe_load(EXPORTERS["llm-foundry"].export(plan).text)["train_loader"]["dataset"]
    assert dataset["epoch_size"] == 10_000  # of 32 tokens
    assert {n: int(s["proportion"] * 10_000) for n, s in dataset["streams"].items()} == pytest.approx(
        {"web": 5000, "code": 3000, "math": 2000}
    )
    documents = read_plan(make_run(budget=320_000), ExportOptions(unit="documents"))
    assert f"EPOCH_SIZE = {documents.rows()}" in EXPORTERS["streaming"].export(documents).text


@pytest.mark.slow
def test_every_kind_of_source_is_opened_as_opmix_reads_it(make_run, corpus, tmp_path):
    rows = {name: load(str(corpus.folder / f"{name}.jsonl")) for name in MIXTURE}
    rows["web"].rename_column("text", "body").save_to_disk(tmp_path / "web", num_shards=2)
    (tmp_path / "code").mkdir()
    for number, text in enumerate(rows["code"]["text"]):
        (tmp_path / "code" / f"{number}.txt").write_text(text.replace(" ", "\n", 1))
    with gzip.open(tmp_path / "math-0.jsonl.gz", "wb") as file:
        file.write((corpus.folder / "math.jsonl").read_bytes())
    rows["poems"].to_parquet(tmp_path / "poems.parquet")
    domains = {
        "web": {"train": {"paths": [str(tmp_path / "web")], "field": "body"}},
        "code": str(tmp_path / "code"),
        "math": str(tmp_path / "math-*.jsonl.gz"),
        "poems": str(tmp_path / "poems.parquet"),
    }
    shares = {"web": 0.4, "code": 0.3, "math": 0.2, "poems": 0.1}
    result = EXPORTERS["interleave"].export(read_plan(make_run(budget=100_000, domains=domains, mixture=shares)))
    module = {}
    exec(compile(result.text, "mixture.py", "exec"), module)
    parts = {name: datasets.load_dataset(**arguments) for name, arguments in module["SOURCES"].items()}
    for name, part in parts.items():
        assert sorted(t.replace("\n", " ") for t in part[module["FIELDS"][name][0]]) == sorted(rows[name]["text"]), name
    assert set(module["build"]().column_names) == {"text"}
