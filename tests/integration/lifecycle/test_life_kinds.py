"""Lives of every kind: from a checkpoint or from scratch, over seeds, deciding again, in bf16, from a file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from lives import ARCHITECTURE, STEP, done, fixed, outcome, outcome_of, stage, stages

from opmix.errors import ConfigError, StoreError
from opmix.lifecycle.loading import load_lifecycle
from opmix.models.from_scratch import train_tokenizer
from opmix.testing import tiny_model, toy_documents


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


def test_a_life_may_search_adaptively(toys, tmp_path):
    adaptive = {"steps": 4, "rank": 2, "adaptive": True, "first_look": 1, "tolerance": 1e9}
    config = toys.config(
        fixed("one", 2, domains=["alpha", "beta"]),
        stage("two", 4, add=["gamma"], probes=adaptive),
    )
    toys.live(config, tmp_path / "life")
    (decision,) = (tmp_path / "life").glob("seed-0/*/search-*/mixture.json")
    content = json.loads(decision.read_text())
    assert [look["steps"] for look in content["adaptive"]["segments"]] == [1, 2]
    assert [note for note in content["notes"] if "stopped after 2 of 4 steps" in note]


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
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "bf16": True,
        "logging_steps": 2,
    }
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
