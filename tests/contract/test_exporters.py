"""What every exporter keeps: it parses, it realises the token shares, it drops zeros, its bytes are reproducible."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml
from export_shares import MIXTURE

from opmix.errors import ConfigError, DataError
from opmix.exporters import EXPORTERS, ExportOptions, exporter_for, read_plan


def constants(text):
    """Top-level literals of a Python file, which must compile."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def shell_array(text):
    script = f"{text}\nprintf '%s\\n' \"${{DATA_ARGS[@]}}\""
    words = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    assert words[0] == "--data-path"
    return {prefix.removesuffix("_text_document"): float(w) for w, prefix in zip(words[1::2], words[2::2], strict=True)}


def by_name(entries, place, weight):
    return {place(entry): entry[weight] for entry in entries}


def stem(path):
    return path.rsplit("/", 1)[-1].removesuffix(".jsonl")


def llamafactory(text):
    content = yaml.safe_load(text)
    return dict(zip(content["dataset"].split(","), map(float, content["interleave_probs"].split(",")), strict=True))


def nanotron(text):
    data = yaml.safe_load(text)["data_stages"][0]["data"]["dataset"]
    return dict(zip(data["dataset_folder"], data["dataset_weights"], strict=True))


def swift(text):
    script = f"{text}\nprintf '%s\\n' \"${{SWIFT_ARGS[@]}}\""
    words = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    places = words[1 : words.index("--interleave_prob")]
    shares = words[words.index("--interleave_prob") + 1 : words.index("--stopping_strategy")]
    return {stem(place): float(share) for place, share in zip(places, shares, strict=True)}


def dataflex(text):
    content = yaml.safe_load(text)
    assert content["static_mix"] is True
    return dict(zip(content["dataset"].split(","), content["init_mixture_proportions"], strict=True))


def nemo(text):
    content = yaml.safe_load(text)
    paths, domains = content["dataset"]["paths"], content["domain_mixture"]["domains"]
    blend = {p.removesuffix("_text_document"): float(w) for w, p in zip(paths[::2], paths[1::2], strict=True)}
    assert list(blend.items()) == [(d["name"], d["sampling_weight"]) for d in domains]
    assert all(d["sampling_weight"] == d["objective_weight"] for d in domains)  # no loss is re-weighted
    return blend


def foundry(text):
    streams = yaml.safe_load(text)["train_loader"]["dataset"]["streams"]
    return {name: stream["proportion"] for name, stream in streams.items()}


# Exporter: how to read the numbers out of its text.
READ = {
    "interleave": lambda t: constants(t)["PROBABILITIES"],
    "trl": lambda t: by_name(yaml.safe_load(t)["datasets"], lambda e: stem(e["data_files"][0]), "fraction"),
    "axolotl": lambda t: by_name(yaml.safe_load(t)["datasets"], lambda e: stem(e["path"]), "weight"),
    "llamafactory": llamafactory,
    "olmo-core": lambda t: by_name(yaml.safe_load(t)["sources"], lambda e: e["source_name"], "target_ratio"),
    "torchtitan": lambda t: constants(t)["WEIGHTS"],
    "megatron": shell_array,
    "streaming": lambda t: {n: s["proportion"] for n, s in constants(t)["STREAMS"].items()},
    "litdata": lambda t: constants(t)["WEIGHTS"],
    "nanotron": nanotron,
    "llm-foundry": foundry,
    "ms-swift": swift,
    "dataflex": dataflex,
    "nemo": nemo,
    "verl": lambda t: constants(t)["WEIGHTS"],
}


def token_shares(name, weights, unit, counts):
    """What the numbers mean in tokens."""
    if name == "axolotl":  # the kept part of each dataset
        tokens = {d: w * counts[d]["tokens"] for d, w in weights.items()}
    elif unit == "documents":
        tokens = {d: w * counts[d]["tokens"] / counts[d]["documents"] for d, w in weights.items()}
    else:
        tokens = weights
    return {d: t / sum(tokens.values()) for d, t in tokens.items()}


def test_every_exporter_is_in_this_table_and_in_the_documentation():
    assert set(READ) == set(EXPORTERS)
    assert len(READ) == 15
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    for name, exporter in EXPORTERS.items():
        assert f"\n| `{name}` | " in text
        assert exporter.__doc__


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("budget", [30_000, 1_000_000])  # less than an epoch of everything; 2 to 8 epochs
def test_shares_survive_the_round_trip(make_run, corpus, name, budget):
    run = make_run(budget=budget)
    result = EXPORTERS[name].export(read_plan(run))
    weights = READ[name](result.text)
    assert weights == pytest.approx(dict(result.weights))
    assert set(weights) == {"web", "code", "math"}  # poems has no share
    shares = token_shares(name, weights, result.unit, corpus.counts)
    assert shares == pytest.approx({d: MIXTURE[d] for d in weights}, abs=1e-6)
    if name not in ("axolotl",):
        assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
    assert "Left out (share 0): poems." in result.text
    assert str(run) in result.text
    for warning in (*result.warnings, *result.notes):
        assert warning in result.text
    assert EXPORTERS[name].export(read_plan(run)) == result


@pytest.mark.parametrize("name", ["streaming", "litdata", "llm-foundry"])
def test_samples_may_be_documents(make_run, corpus, name):
    plan = read_plan(make_run(), ExportOptions(unit="documents"))
    result = EXPORTERS[name].export(plan)
    shares = token_shares(name, READ[name](result.text), "documents", corpus.counts)
    assert shares["code"] == pytest.approx(0.3, abs=1e-6)
    assert f"{plan.rows()}" in result.text
    assert result.unit == "documents"


def test_one_unit_trainers_refuse_another(make_run):
    run = make_run()
    for name in set(EXPORTERS) - {"streaming", "litdata", "llm-foundry"}:
        other = "tokens" if EXPORTERS[name].unit == "documents" else "documents"
        with pytest.raises(ConfigError, match="--unit"):
            EXPORTERS[name].export(read_plan(run, ExportOptions(unit=other)))


def test_a_fitted_folder_exports_where_the_unit_is_tokens(fitted_run):
    for name in ("olmo-core", "megatron", "nanotron", "streaming", "litdata", "llm-foundry", "nemo"):
        result = EXPORTERS[name].export(read_plan(fitted_run))
        assert READ[name](result.text) == pytest.approx({"web": 0.5, "code": 0.3, "math": 0.2})
        assert "No budget" in result.text


def test_a_fitted_folder_asks_for_what_it_lacks(fitted_run):
    bare = read_plan(fitted_run)
    for name in ("interleave", "trl", "axolotl", "llamafactory", "torchtitan", "ms-swift", "dataflex"):
        with pytest.raises(DataError, match="--path web="):
            EXPORTERS[name].export(bare)
    placed = read_plan(fitted_run, ExportOptions(paths={"": "texts/{domain}.jsonl"}))
    for name in ("interleave", "trl", "llamafactory", "ms-swift", "dataflex", "verl"):
        with pytest.raises(ConfigError, match="--row-tokens web="):
            EXPORTERS[name].export(placed)
    with pytest.raises(ConfigError, match="--available web="):
        EXPORTERS["axolotl"].export(placed)
    full = ExportOptions(
        paths={"": "texts/{domain}.jsonl"}, row_tokens={"": 100, "web": 50}, available={"": 10**6}, tokens=10**5
    )
    weights = READ["trl"](EXPORTERS["trl"].export(read_plan(fitted_run, full)).text)
    assert weights == pytest.approx({"web": 1 / 1.5, "code": 0.3 / 1.5, "math": 0.2 / 1.5})
    assert READ["axolotl"](EXPORTERS["axolotl"].export(read_plan(fitted_run, full)).text)["web"] == pytest.approx(0.05)


def test_an_unknown_trainer_suggests_a_near_one():
    with pytest.raises(ConfigError, match="did you mean 'megatron'"):
        exporter_for("megatrom")
