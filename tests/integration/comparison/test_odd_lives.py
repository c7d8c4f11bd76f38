"""Comparisons that begin with a checkpoint, end with a fixed stage, or evaluate as they train; and what averages are charged."""

import pytest
from contests import STEP
from safetensors.torch import load_file

from opmix.mixture_search.trial_runner import TrialRunner


@pytest.fixture(scope="module")
def base(arena, tmp_path_factory):
    """A model that has learned alpha and beta."""
    result = arena.run(arena.config(["uniform"]), tmp_path_factory.mktemp("base") / "c")
    return result.folder / "seed-0" / "01-base" / "model"


def from_checkpoint(arena, base, methods, **changes):
    more = {"name": "more", "domains": ["alpha", "beta", "gamma"], "tokens": 4 * STEP}
    return arena.config(methods, architecture=None, tokenizer=None, model=str(base), **{"stages": [more], **changes})


def test_from_a_checkpoint_without_a_shared_stage(arena, base, tmp_path):
    known = from_checkpoint(arena, base, ["op_mix", "uniform", "ewc"], old_mixture={"alpha": 0.5, "beta": 0.5})
    result = arena.run(known, tmp_path / "known")
    for entrant in result.content["entrants"].values():
        life = entrant["seeds"]["0"]
        assert set(life["forgetting"]) == {"alpha", "beta"}
        losses = life["stages"][0]["losses"]["test"]["alpha"]
        assert life["forgetting"]["alpha"] == pytest.approx(losses["after"] - losses["before"])
        assert life["cost"]["flops"]["shared"] == 0
    unknown = arena.run(from_checkpoint(arena, base, ["uniform", "size"]), tmp_path / "unknown")
    assert unknown.content["table"][0]["forgetting"]["mean"] is None
    assert "nothing old" in (tmp_path / "unknown" / "report.html").read_text()


@pytest.mark.parametrize("name", ["odm", "lora_merge", "full_retraining", "ewc", "uniform"])
def test_a_fixed_stage_after_a_contested_one_is_plain_training(arena, tmp_path, name):
    stages = [
        {"name": "base", "domains": ["alpha", "beta"], "mixture": "uniform", "tokens": 3 * STEP},
        {"name": "more", "add": ["gamma"], "tokens": 3 * STEP},
        {"name": "last", "mixture": "uniform", "tokens": 2 * STEP},
    ]
    content = arena.run(arena.config([name], stages=stages), tmp_path / "c").content
    more, last = content["entrants"][name]["seeds"]["0"]["stages"]
    assert last["tokens"] == 2 * STEP
    assert last["mixture"] == pytest.approx(dict.fromkeys(("alpha", "beta", "gamma"), 1 / 3))
    assert set(last["cost"]["flops"]) == {"training"}
    weights = [load_file(tmp_path / "c" / s["folder"] / "model" / "model.safetensors") for s in (more, last)]
    assert any((weights[0][n] != weights[1][n]).any() for n in weights[0])


@pytest.mark.parametrize("name", ["ewc", "odm"])
def test_losses_are_watched_while_any_method_trains(arena, tmp_path, name):
    config = arena.config([name], evaluation={"sequences": 4, "every": 2 * STEP})
    arena.run(config, tmp_path / "c")
    log = (tmp_path / "c" / f"seed-0/{name}/02-more/training.csv").read_text()
    assert "eval_gamma_loss" in log.splitlines()[0]


def test_models_that_are_averaged_are_charged_once(arena, tmp_path, monkeypatch):
    booked = []
    book = TrialRunner.average

    def average(self, *args, **kwargs):
        made = book(self, *args, **kwargs)
        booked.append([e.step for e in self.context.ledger.entries if e.purpose == "trials"])
        return made

    monkeypatch.setattr(TrialRunner, "average", average)
    arena.run(arena.config(["merge_mix"]), tmp_path / "c")
    assert booked
    assert len(booked[-1]) == len(set(booked[-1])) >= 3
