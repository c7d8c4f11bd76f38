"""Whole lives on one-layer models: what they leave behind, and what a second run does not do again."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lives import ARCHITECTURE, STEP, done, fixed, outcome, same, stage, weights

from opmix.errors import ConfigError, DataError, StoreError
from opmix.lifecycle.loading import load_lifecycle
from opmix.models.from_scratch import train_tokenizer
from opmix.settings import as_json, changed
from opmix.testing import tiny_model, toy_documents

SPLITS = ("valid", "test")


def stages(folder):
    return outcome_of(folder)["seeds"]["0"]["stages"]


def outcome_of(folder):
    return json.loads((folder / "life.json").read_text())


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
        ("one", "alpha"), ("one", "beta"), ("two", "alpha"), ("two", "beta"), ("two", "gamma"),
    ]  # fmt: skip
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
            cost["tokens"][row["purpose"]], cost["flops"][row["purpose"]],
        )  # fmt: skip
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
        stage("one", 8, domains=["alpha", "beta"], prefix=0.5), stage("two", 4, add=["gamma"]), fixed("three", 2, drop=["alpha"]),
    )  # fmt: skip
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


def test_starting_from_a_checkpoint(toys, tmp_path):
    tokenizer = train_tokenizer(toy_documents("alpha", 30), 300)
    settings = {k: v for k, v in ARCHITECTURE.items() if k != "model_type"}
    model = tiny_model("llama", vocab_size=300, **settings)
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    start = {"architecture": None, "tokenizer": None, "model": str(tmp_path / "start")}
    one = stage("one", 4, add=["gamma"])
    config = toys.config(one, **start, old_mixture={"alpha": 0.75, "beta": 0.25})
    toys.live(config, tmp_path / "life")
    (made,) = stages(tmp_path / "life")
    assert made["old_mixture"] == {"alpha": 0.75, "beta": 0.25}
    assert made["new"] == ["gamma"]
    # Old domains move together, and are what can be forgotten.
    assert made["mixture"]["alpha"] == pytest.approx(3 * made["mixture"]["beta"])
    assert set(made["forgetting"]) == {"alpha", "beta"}
    assert len(made["parts"]) == 1
    # Another checkpoint in its place is noticed before anything is done.
    tiny_model("llama", vocab_size=300, **settings, seed=1).save_pretrained(tmp_path / "start")
    with pytest.raises(StoreError, match=r"seed-0/start: checkpoint: \w+ -> \w+"):
        toys.live(config, tmp_path / "life")


def test_a_checkpoint_that_does_not_fit_is_refused(toys, tmp_path):
    tokenizer = train_tokenizer(toy_documents("alpha", 30), 300)
    tiny_model("llama", vocab_size=300, max_position_embeddings=16).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    start = {"architecture": None, "tokenizer": None, "model": str(tmp_path / "start")}
    with pytest.raises(ConfigError, match="sequence_length: 32; the model takes at most 16 tokens"):
        toys.live(toys.config(fixed("one", 2, domains=["alpha"]), **start), tmp_path / "life")


def test_settings_that_transformers_keeps_elsewhere(toys, tmp_path):
    own = {**ARCHITECTURE, "rope_theta": 5e4, "attention_dropout": 0.1}
    result = toys.live(toys.config(fixed("one", 1, domains=["alpha"]), architecture=own), tmp_path / "life")
    made = json.loads((result.model() / "config.json").read_text())
    assert made["rope_parameters"]["rope_theta"] == 5e4


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            {**ARCHITECTURE, "hiden_size": 8},
            "architecture.hiden_size: llama has no such setting; did you mean 'hidden_size'",
        ),
        ({"model_type": "lama"}, "architecture: 'lama' cannot be built"),
        ({**ARCHITECTURE, "max_position_embeddings": 16}, "sequence_length: 32; the model takes at most 16 tokens"),
    ],
)
def test_architectures_that_cannot_be_built(toys, tmp_path, architecture, message):
    with pytest.raises(ConfigError, match=message):
        toys.live(toys.config(fixed("one", 2, domains=["alpha"]), architecture=architecture), tmp_path / "life")
    with pytest.raises(ConfigError, match="expected at least 257"):
        toys.live(toys.config(fixed("one", 2, domains=["alpha"]), tokenizer={"vocab_size": 256}), tmp_path / "small")


# -- which rows are drawn ---------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Rows of every training plan, as they are asked for: (stage folder, plan)."""
    from opmix.lifecycle import segment_training

    plans, real = [], segment_training.train_segment

    def watch(spec, checkpoints, *, start, **settings):
        plans.append(spec.dataset._plan[start * 4 : spec.stop_at * 4])
        return real(spec, checkpoints, start=start, **settings)

    monkeypatch.setattr(segment_training, "train_segment", watch)
    return plans


def test_a_life_may_search_adaptively(toys, tmp_path):
    adaptive = {"steps": 4, "rank": 2, "adaptive": True, "first_look": 1, "tolerance": 1e9}
    config = toys.config(
        fixed("one", 2, domains=["alpha", "beta"]), stage("two", 4, add=["gamma"], probes=adaptive),
    )  # fmt: skip
    toys.live(config, tmp_path / "life")
    (decision,) = (tmp_path / "life").glob("seed-0/*/search-*/mixture.json")
    content = json.loads(decision.read_text())
    assert [look["steps"] for look in content["adaptive"]["segments"]] == [1, 2]
    assert [note for note in content["notes"] if "stopped after 2 of 4 steps" in note]


def rows_of(plan, name):
    return plan.row[plan.domain == plan.names.index(name)].tolist()


def test_replay_goes_on_or_repeats(toys, tmp_path, drawn):
    def two(replay):
        return toys.config(fixed("one", 4, domains=["alpha", "beta"]), fixed("two", 4, add=["gamma"], replay=replay))

    toys.live(two("remaining"), tmp_path / "remaining")
    toys.live(two("repeat"), tmp_path / "repeat")
    one, going_on, again, repeated = drawn
    assert one.row.tolist() == again.row.tolist()
    assert not set(rows_of(going_on, "alpha")) & set(rows_of(one, "alpha"))
    assert rows_of(repeated, "alpha") == rows_of(one, "alpha")[: len(rows_of(repeated, "alpha"))]
    assert going_on.cursors()["alpha"] == 8 + len(rows_of(going_on, "alpha"))
    with pytest.raises(StoreError, match=r"replay: remaining -> repeat"):
        toys.live(two("repeat"), tmp_path / "remaining")


@pytest.mark.slow
def test_a_domain_used_up_is_no_longer_on_offer(toys, tmp_path, drawn):
    """Alpha has as many sequences to give as the first stage takes."""
    toys.live(toys.config(fixed("one", 1, domains=["alpha", "beta"])), tmp_path / "look")
    rows = json.loads((tmp_path / "look" / "data.json").read_text())["rows"]["alpha"]
    domains = {n: {"train": f"data/{n}.jsonl", "holdout": 0.2} for n in ("alpha", "beta", "gamma")}
    domains["alpha"]["max_epochs"] = 8 / rows
    config = toys.config(
        fixed("one", 4, domains=["alpha", "beta"]), stage("two", 4, add=["gamma"]), domains=domains,
    )  # fmt: skip
    toys.live(config, tmp_path / "life")
    _, two = stages(tmp_path / "life")
    assert two["notes"] == ["alpha is used up and no longer on offer"]
    assert two["mixture"]["alpha"] == 0
    assert set(two["mixture"]) == {"alpha", "beta", "gamma"}
    assert rows_of(drawn[-1], "alpha") == []
    assert set(two["forgetting"]) == {"alpha", "beta"}


def test_dropping_all_that_was_learned_is_refused_before_it_is_trained(toys, tmp_path, drawn):
    config = toys.config(
        fixed("one", 2, domains=["alpha"]), stage("two", 2, domains=["beta", "gamma"], drop=["alpha"]),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"stage 'two': none of the old mixture's domains \['alpha'\] is on offer"):
        toys.live(config, tmp_path / "life")


@pytest.mark.slow
def test_a_continued_optimizer(toys, tmp_path, drawn):
    def two(optimizer):
        return toys.config(fixed("one", 4, domains=["alpha"]), fixed("two", 4, optimizer=optimizer))

    toys.live(two("continued"), tmp_path / "continued")
    toys.live(two("fresh"), tmp_path / "fresh")
    models = {n: weights(tmp_path / n / "seed-0" / "02-two" / "model") for n in ("continued", "fresh")}
    assert not same(models["continued"], models["fresh"])
    first = {n: weights(tmp_path / n / "seed-0" / "01-one" / "model") for n in ("continued", "fresh")}
    assert same(first["continued"], first["fresh"])


def test_a_continued_optimizer_that_was_not_kept(toys, tmp_path):
    one = fixed("one", 4, domains=["alpha"])
    whole = toys.config(one, fixed("two", 4, optimizer="continued"))
    toys.live(whole, tmp_path / "whole")
    toys.live(toys.config(one), tmp_path / "life")
    with pytest.raises(StoreError, match=r"stage 'two': .*optimizer: fresh"):
        toys.live(whole, tmp_path / "life")
    shutil.rmtree(tmp_path / "life" / "seed-0" / "01-one" / "model")  # what the message proposes
    toys.live(whole, tmp_path / "life")
    assert outcome_of(tmp_path / "life") == outcome_of(tmp_path / "whole")


# -- what is kept -----------------------------------------------------------------------------------------------------


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


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_give_mean_deviation_and_n(toys, tmp_path):
    config = toys.config(fixed("one", 4, domains=["alpha", "beta"]), seeds=[0, 5])
    result = toys.live(config, tmp_path / "life")
    content = outcome(result)
    losses = [content["seeds"][s]["stages"][0]["losses"]["test"]["alpha"]["after"] for s in ("0", "5")]
    assert len(set(losses)) == 2
    (over,) = content["stages"]
    assert over["n"] == 2
    assert over["test_loss"]["alpha"] == pytest.approx({"mean": np.mean(losses), "sd": np.std(losses, ddof=1), "n": 2})
    assert over["mixture"]["alpha"] == {"mean": 0.5, "sd": 0.0, "n": 2}
    assert result.model(5) == tmp_path / "life" / "seed-5" / "01-one" / "model"
    # One more seed is only that; fewer seeds lose nothing.
    before = done(tmp_path / "life")
    toys.live(toys.config(fixed("one", 4, domains=["alpha", "beta"]), seeds=[5, 2]), tmp_path / "life")
    assert all(name.startswith("seed-2/") for name in done(tmp_path / "life")[len(before) :])
    assert outcome_of(tmp_path / "life")["seeds"]["5"] == content["seeds"]["5"]
    alone = toys.live(toys.config(fixed("one", 4, domains=["alpha", "beta"]), seeds=[5]), tmp_path / "alone")
    assert outcome(alone)["stages"][0]["test_loss"]["alpha"]["sd"] is None
    assert outcome(alone)["seeds"]["5"] == content["seeds"]["5"]


# -- deciding again ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_deciding_every_so_many_tokens_and_rebalancing(toys, tmp_path):
    again = stage("one", 8, domains=["alpha", "beta"], prefix=0.25, remix_every=3 * STEP)
    config = toys.config(again, stage("two", 4, add=["alpha"]), stage("three", 4, add=["gamma"], drop=["beta"]))
    toys.live(config, tmp_path / "life")
    one, two, three = stages(tmp_path / "life")
    assert [p["steps"] for p in one["parts"]] == [[0, 2], [2, 5], [5, 8]]
    assert [p["decided"] for p in one["parts"]] == [False, True, True]
    assert two["new"] == []
    probes = {
        p.parent.parent.parent.name: sorted(q.name for q in p.parent.iterdir())
        for p in (tmp_path / "life").glob("seed-0/*/search-*/probes/00-*")
    }
    assert probes["02-two"] == ["00-old", "01-alpha", "02-joint"]
    assert two["old_mixture"] == one["mixture"]
    assert set(two["forgetting"]) == {"alpha", "beta"}
    assert three["domains"] == ["alpha", "gamma"]
    assert set(three["forgetting"]) == {"alpha", "beta"}
    assert three["mixture"].keys() == {"alpha", "gamma"}


@pytest.mark.slow
def test_bf16_accumulation_checkpointing_and_evaluations(toys, tmp_path):
    trainer = {
        "learning_rate": 1e-2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True,
        "bf16": True, "logging_steps": 2,
    }  # fmt: skip
    config = toys.config(trainer=trainer, evaluation={"sequences": 4, "every": 2 * STEP}, document_mask=True)
    toys.live(config, tmp_path / "life")
    log = list(csv.DictReader((tmp_path / "life" / "seed-0" / "01-one" / "training.csv").read_text().splitlines()))
    assert [r["step"] for r in log] == ["2", "4", "6", "8"]
    assert all(r["eval_alpha_loss"] and r["eval_beta_loss"] for r in log)
    assert float(log[-1]["eval_alpha_loss"]) == pytest.approx(
        stages(tmp_path / "life")[0]["losses"]["valid"]["alpha"]["after"], abs=0.05
    )


def test_a_yaml_file_lives_too(toys, tmp_path):
    import yaml
    from lives import content

    file = toys.folder / "life.yaml"
    file.write_text(yaml.safe_dump(content(fixed("one", 2, domains=["alpha"]))))
    config = load_lifecycle(file, [f"cache_dir={toys.folder / 'data' / 'cache'}", "stages.0.tokens=384"])
    assert stages(toys.live(config, tmp_path / "life").folder)[0]["steps"] == 3
    assert isinstance(toys.live(config, tmp_path / "life").model(), Path)


def test_trackers_work_because_they_are_the_trainers(toys, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    only = fixed("one", 8, domains=["alpha", "beta"])
    result = toys.live(
        toys.config(only, trainer={**toys.config().search.trainer, "report_to": "tensorboard"}), tmp_path / "life"
    )
    (events,) = (result.folder / "seed-0" / "01-one").rglob("events.out.tfevents*")
    shown = EventAccumulator(str(events.parent)).Reload()
    assert "train/loss" in shown.Tags()["scalars"]
    assert not list((result.folder / "seed-0" / "01-one").rglob("checkpoint-*"))
