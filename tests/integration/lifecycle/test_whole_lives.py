"""Whole lives on one-layer models: what they leave behind, and what a second run does not do again."""

import csv
import json
import shutil

import pytest
import torch
from lives import STEP, done, fixed, outcome, outcome_of, same, stage, stages, weights

from opmix.errors import StoreError
from opmix.settings import as_json, changed
from opmix.testing import toy_documents

SPLITS = ("valid", "test")


@pytest.fixture
def copied(finished, tmp_path):
    """The finished life, to be changed."""
    config, result = finished
    shutil.copytree(result.folder, tmp_path / "life")
    return config, tmp_path / "life"


def test_the_final_model_loads_anywhere(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, result = finished
    model = AutoModelForCausalLM.from_pretrained(result.model())
    tokenizer = AutoTokenizer.from_pretrained(result.model())
    ids = tokenizer("".join(toy_documents("alpha", 1)), return_tensors="pt").input_ids[:, :32]
    assert torch.isfinite(model(ids, labels=ids).loss)
    assert model.num_parameters() == sum(v.numel() for v in weights(result.model()).values())


def test_every_model_says_what_it_was_trained_on(finished):
    from opmix.report.card import run_card

    _, result = finished
    models = sorted(result.folder.glob("seed-0/*/model"))
    assert models
    for told, model in zip(stages(result.folder), models, strict=True):
        text = (model / "README.md").read_text()
        record = json.loads(
            (model.parent.parent.parent / "steps" / "seed-0" / model.parent.name / "model.json").read_text()
        )
        assert record["result"]["fingerprint"] in text
        for part in told["parts"]:
            for name, share in part["mixture"].items():
                assert not share or f"| {name} | {share:.4f} |" in text
    assert "Stage 1" in run_card(result.folder).section()


def test_every_adapter_is_plain_peft(finished):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, result = finished
    folders = sorted(result.folder.glob("seed-0/*/search-*/probes/*"))
    assert [f.name for f in folders] == ["00-old", "01-alpha", "02-beta", "00-old", "01-gamma", "02-joint"]
    ids = torch.arange(2, 34)[None]
    for folder in folders:
        base = AutoModelForCausalLM.from_pretrained(result.folder / "seed-0" / "01-one" / "model")
        adapted = PeftModel.from_pretrained(base, folder)
        with torch.no_grad():
            logits = adapted(ids).logits
            with adapted.disable_adapter():
                assert not torch.equal(adapted(ids).logits, logits)


def test_the_document_adds_up(finished):
    _, result = finished
    one, two = outcome(result)["seeds"]["0"]["stages"]
    assert (one["old_mixture"], two["old_mixture"]) == (None, one["mixture"])
    assert (one["domains"], one["new"], two["new"]) == (["alpha", "beta"], ["alpha", "beta"], ["gamma"])
    assert [p["steps"] for p in one["parts"]] == [[0, 4], [4, 8]]
    assert [p["decided"] for p in one["parts"]] == [False, True]
    assert one["parts"][0]["mixture"] == {"alpha": 0.5, "beta": 0.5}
    for made, steps in ((one, 8), (two, 4)):
        assert made["tokens"] == steps * STEP == sum(p["tokens"] for p in made["parts"])
        assert made["cost"]["tokens"]["training"] == steps * STEP
        assert sum(made["mixture"].values()) == pytest.approx(1)
        decided = made["parts"][-1]
        assert set(decided["interval"]) == set(decided["predicted"]) == set(made["domains"])
        searched = {k: v for k, v in made["cost"]["flops"].items() if k != "training"}
        assert made["cost"]["search_share"] == pytest.approx(sum(searched.values()) / made["cost"]["flops"]["training"])
        assert decided["search_flops"] == pytest.approx(sum(searched.values()))
        assert made["cost"]["tokens"]["probes"] == 3 * 2 * STEP
    # What was measured after a stage is what it forgot against.
    for split in SPLITS:
        for domain in ("alpha", "beta"):
            assert two["losses"][split][domain]["before"] == one["losses"][split][domain]["after"]
    assert set(two["forgetting"]) == {"alpha", "beta"}
    assert two["forgetting"]["alpha"] == pytest.approx(
        two["losses"]["test"]["alpha"]["after"] - two["losses"]["test"]["alpha"]["before"]
    )
    assert one["forgetting"] == {}
    assert one["losses"]["test"]["alpha"]["after"] < one["losses"]["test"]["alpha"]["before"]


def test_the_tables_say_what_the_document_says(finished):
    _, result = finished
    with (result.folder / "tables" / "stages.csv").open() as file:
        rows = list(csv.DictReader(file))
    made = outcome(result)["seeds"]["0"]["stages"]
    assert [(r["name"], r["domain"]) for r in rows] == [
        ("one", "alpha"),
        ("one", "beta"),
        ("two", "alpha"),
        ("two", "beta"),
        ("two", "gamma"),
    ]
    for row in rows:
        of = made[int(row["stage"]) - 1]
        assert float(row["share"]) == of["mixture"][row["domain"]]
        assert float(row["test_after"]) == of["losses"]["test"][row["domain"]]["after"]
        assert float(row["predicted_valid"]) == of["parts"][-1]["predicted"][row["domain"]]
        assert [float(row["share_low"]), float(row["share_high"])] == of["parts"][-1]["interval"][row["domain"]]
        assert (row["forgetting"] == "") == (row["domain"] not in of["forgetting"])
    with (result.folder / "tables" / "costs.csv").open() as file:
        costs = list(csv.DictReader(file))
    for row in costs:
        cost = made[int(row["stage"]) - 1]["cost"]
        assert (float(row["tokens"]), float(row["flops"])) == (
            cost["tokens"][row["purpose"]],
            cost["flops"][row["purpose"]],
        )
    assert len(costs) == sum(len(s["cost"]["flops"]) for s in made)


def test_losses_are_those_of_the_saved_model(finished, toys):
    from transformers import AutoModelForCausalLM

    from opmix.compute.memory import watch_memory
    from opmix.lifecycle.measuring import measure
    from opmix.lifecycle.runtime import make_runtime
    from opmix.progress import Silent
    from opmix.runs.store import RunStore
    from opmix.training.factory import default_trainer

    config, result = finished
    watch = watch_memory()
    runtime = make_runtime(config, toys.folder, RunStore(result.folder), Silent(), default_trainer)
    model = AutoModelForCausalLM.from_pretrained(result.model())
    losses, tokens = measure(model, runtime, ["alpha", "gamma"], 0)
    made = outcome(result)["seeds"]["0"]["stages"][1]
    assert losses["test"]["gamma"]["loss"] == made["losses"]["test"]["gamma"]["after"]
    assert tokens <= 2 * 2 * 4 * 32
    assert watch() > 0


def test_disk_is_not_left_with_what_only_a_running_stage_needs(finished):
    _, result = finished
    names = {p.name for p in result.folder.rglob("*")}
    assert not any(n.startswith((".", "checkpoint-")) for n in names)
    assert not names & {"checkpoints", "lock", "optimizer.pt"}
    log = (result.folder / "seed-0" / "01-one" / "training.csv").read_text().splitlines()
    assert log[0] == "step,tokens,loss,learning_rate,grad_norm"
    assert [line.split(",")[:2] for line in log[1:]] == [[str(n), str(n * STEP)] for n in (2, 4, 6, 8)]


def test_running_a_finished_life_again_does_nothing(copied, toys):
    config, folder = copied
    outside = {
        "manifest.json",
        "data.json",
        "life.json",
        "stages.csv",
        "costs.csv",
        "events.jsonl",
        "trace.jsonl",
        "progress.json",
        "report.html",
    }
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    events = (folder / "events.jsonl").read_text().splitlines()
    toys.live(config, folder)
    for path, (modified, text) in before.items():
        if path.name in ("events.jsonl", "trace.jsonl"):
            continue
        assert path.read_bytes() == text, path
        assert path.name in outside or path.stat().st_mtime_ns == modified, path
    now = (folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in now[len(events) :]] == ["finished"]
    assert {p for p in folder.rglob("*") if p.is_file()} == set(before)


def test_a_stage_appended_redoes_nothing(copied, toys, finished):
    config, folder = copied
    before, made = done(folder), stages(folder)
    longer = toys.config(
        stage("one", 8, domains=["alpha", "beta"], prefix=0.5),
        stage("two", 4, add=["gamma"]),
        fixed("three", 2, drop=["alpha"]),
    )
    toys.live(longer, folder)
    assert done(folder)[len(before) :] == [f"seed-0/03-three/{s}" for s in ("before", "train-2", "model", "after")]
    assert stages(folder)[:2] == made
    last = stages(folder)[2]
    assert last["mixture"] == {"beta": 0.5, "gamma": 0.5}
    # A domain that is no longer on offer is measured on: it is what may be forgotten.
    assert set(last["losses"]["test"]) == set(last["forgetting"]) == {"alpha", "beta", "gamma"}
    # And the shorter life is still there.
    toys.live(config, folder)
    assert outcome_of(folder) == outcome(finished[1])


def test_what_went_missing_is_made_again(copied, toys):
    config, folder = copied
    model = folder / "seed-0" / "02-two" / "model"
    old, before = weights(model), done(folder)
    shutil.rmtree(model)
    toys.live(config, folder)
    assert same(weights(model), old)
    assert done(folder)[len(before) :] == ["seed-0/02-two/train-4", "seed-0/02-two/model"]
    # Nobody misses the first stage's model while the second is finished.
    shutil.rmtree(folder / "seed-0" / "01-one" / "model")
    toys.live(config, folder)
    assert len(done(folder)) == len(before) + 2


def test_changed_settings_are_refused_unless_asked_for(copied, toys):
    config, folder = copied
    kept = outcome_of(folder)
    other = toys.config(
        *[as_json(s) for s in config.stages[:1]],
        stage("two", 4, add=["gamma"], solve={"kl": 0.2}),
    )
    with pytest.raises(StoreError) as error:
        toys.live(other, folder)
    text = str(error.value)
    assert "4 finished steps were done with other inputs" in text
    assert "seed-0/02-two/search-0: search.solve.kl: None -> 0.2" in text
    assert "seed-0/02-two/model: follows seed-0/02-two/train-4" in text
    assert "--redo" in text
    assert outcome_of(folder) == kept
    before = done(folder)
    toys.live(other, folder, redo=True)
    assert done(folder)[len(before) :] == [f"seed-0/02-two/{s}" for s in ("search-0", "train-4", "model", "after")]
    assert stages(folder)[0] == kept["seeds"]["0"]["stages"][0]


@pytest.mark.slow
def test_keeping_less_and_keeping_more(toys, tmp_path, finished):
    config, result = finished
    made = changed(config, keep=changed(config.keep, models="last", probes=False))
    toys.live(made, tmp_path / "less")
    assert not (tmp_path / "less" / "seed-0" / "01-one" / "model").exists()
    assert (tmp_path / "less" / "seed-0" / "02-two" / "model" / "config.json").exists()
    assert not list(tmp_path.glob("less/seed-0/*/search-*/probes"))
    assert outcome_of(tmp_path / "less") == outcome(result)
    before = done(tmp_path / "less")
    toys.live(made, tmp_path / "less")
    assert done(tmp_path / "less") == before
    third = changed(made.stages[1], name="three", add=(), mixture="current")
    longer = changed(made, stages=(*made.stages, third))
    toys.live(longer, tmp_path / "less")
    assert {s.split("/")[1] for s in done(tmp_path / "less")[len(before) :]} == {"03-three"}
    assert [p.parent.name for p in tmp_path.glob("less/seed-0/*/model")] == ["03-three"]
    one = toys.config(fixed("one", 4, domains=["alpha"]), keep={"checkpoints": True})
    toys.live(one, tmp_path / "more")
    kept = list((tmp_path / "more" / "seed-0" / "01-one" / "checkpoints").iterdir())
    assert [p.name for p in kept] == ["checkpoint-4"]
