"""Segments of one run: stopped anywhere and gone on with, they are the unbroken run bit for bit."""

import json
import shutil

import pytest
import torch
from killed import KillAt, KilledError
from torch.utils.data import Dataset
from transformers import TrainerCallback

from opmix.errors import ConfigError, StoreError, TrainingError
from opmix.testing import tiny_model
from opmix.training.arguments import RESERVED, checked_arguments
from opmix.training.checkpoints import MARKER, Checkpoints, drop_checkpoints, latest_checkpoint, whole_checkpoints
from opmix.training.factory import TrainSpec
from opmix.training.full import train_segment

LENGTH, STEPS = 16, 8
PLAIN = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 2, "lr_scheduler_type": "linear"}
EVERYTHING = {
    **PLAIN,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "bf16": True,
}


class Rows(Dataset):
    """Random sequences, always the same."""

    def __init__(self):
        self.ids = torch.randint(2, 60, (STEPS * 4, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index].clone()}


def dropout_model():
    return tiny_model("llama", vocab_size=64, num_hidden_layers=1, attention_dropout=0.2, tie_word_embeddings=True)


def train(folder, arguments=PLAIN, *, start=0, stop=STEPS, model=None, callbacks=(), report=None, **kept):
    spec = TrainSpec(
        model=model or dropout_model(),
        dataset=Rows(),
        output_dir=folder,
        steps=STEPS,
        stop_at=stop,
        seed=3,
        arguments=arguments,
        callbacks=callbacks,
    )
    checkpoints = Checkpoints(**{"key": "k", "save_every": 2, **kept})
    return train_segment(spec, checkpoints, start=start, report=report)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one, other):
    for name, value in weights(other).items():
        assert torch.equal(weights(one)[name], value), name


def losses(trainer):
    return [(e["step"], e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]


@pytest.fixture(scope="module", params=[PLAIN, EVERYTHING], ids=["plain", "everything"])
def unbroken(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return request.param, train(folder, request.param)


def test_dropout_is_on(unbroken, tmp_path):
    arguments, whole = unbroken
    model = dropout_model()
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    assert losses(train(tmp_path, arguments, model=model)) != losses(whole)


@pytest.mark.parametrize(
    ("step", "moment"), [(0, "begin"), (1, "end"), (3, "begin"), (4, "end"), (4, "save"), (7, "end"), (8, "end")]
)
def test_killed_at_any_step_and_resumed(unbroken, tmp_path, step, moment):
    arguments, whole = unbroken
    with pytest.raises(KilledError):
        train(tmp_path, arguments, callbacks=[KillAt(step, moment)])
    resumed = train(tmp_path, arguments)
    assert_same(resumed, whole)
    assert losses(resumed) == losses(whole)
    assert [at for at, _ in whole_checkpoints(tmp_path)] == [8]


def test_killed_again_and_again(unbroken, tmp_path):
    arguments, whole = unbroken
    for step in (1, 3, 5, 7):
        with pytest.raises(KilledError):
            train(tmp_path, arguments, callbacks=[KillAt(step, "end")])
    resumed = train(tmp_path, arguments)
    assert_same(resumed, whole)
    assert losses(resumed) == losses(whole)


def test_two_segments_are_one(unbroken, tmp_path):
    arguments, whole = unbroken
    first = train(tmp_path, arguments, stop=4, key="first")
    assert first.state.global_step == 4
    second = train(tmp_path, arguments, start=4, key="second", previous_key="first")
    assert_same(second, whole)
    assert losses(second) == losses(whole)
    # The second segment, begun again with another key, starts where the first ended, not where the other one did.
    third = train(tmp_path, arguments, start=4, key="third", previous_key="first")
    assert_same(third, whole)


def test_a_finished_segment_is_not_trained_again(unbroken, tmp_path):
    arguments, whole = unbroken
    train(tmp_path, arguments)
    again = train(tmp_path, arguments, callbacks=[KillAt(7, "begin")])
    assert_same(again, whole)


def test_a_segment_that_ended_before_its_record_trains_no_step_more(unbroken, tmp_path):
    """Found by `make torture PARTS=deaths SEED=20783`: the trainer stopped after 4 of 3 steps, and did so for good."""
    arguments, whole = unbroken
    first = train(tmp_path, arguments, stop=4, key="first")
    again = train(tmp_path, arguments, stop=4, key="first")
    assert again.state.global_step == 4
    assert_same(again, first)
    assert losses(again) == losses(first)
    assert_same(train(tmp_path, arguments, start=4, key="second", previous_key="first"), whole)


def test_checkpoints_that_are_not_whole_are_not_used(tmp_path):
    whole = train(tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(KilledError):
        train(folder, callbacks=[KillAt(3, "end")])
    good, later = folder / "checkpoint-2", folder / "checkpoint-6"
    assert latest_checkpoint(folder, "k") == good
    assert latest_checkpoint(folder, "other") is None
    shutil.copytree(good, later)
    named = (good / MARKER).read_text()
    for marker in (None, named[:20], '{"step": 6}', "[]", named.replace('"k"', '"other"')):
        (later / MARKER).unlink(missing_ok=True)
        if marker is not None:
            (later / MARKER).write_text(marker)
        assert latest_checkpoint(folder, "k") == good
    (later / "model.safetensors").write_bytes(b"half")
    (later / "optimizer.pt").unlink()
    (folder / "tmp-checkpoint-7").mkdir()
    assert_same(train(folder), whole)
    drop_checkpoints(folder)
    assert not folder.exists()
    drop_checkpoints(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_that_was_cut_off_later_is_not_used(tmp_path, file):
    whole = train(tmp_path)
    path = tmp_path / "checkpoint-8" / file
    path.write_bytes(path.read_bytes()[:50])
    assert latest_checkpoint(tmp_path, "k") is None
    assert_same(train(tmp_path), whole)


def test_the_trainer_evaluates_as_it_goes(tmp_path):
    whole = train(tmp_path / "a")
    watched = train(tmp_path / "b", evaluate_every=4, held_out={"web": Rows(), "code": Rows()})
    found = [(e["step"], e["eval_web_loss"]) for e in watched.state.log_history if "eval_web_loss" in e]
    assert [step for step, _ in found] == [4, 8]
    assert found[1][1] < found[0][1]
    # Before the first evaluation; it draws a seed for its loader, so dropout is another one from there on.
    assert losses(watched)[:2] == losses(whole)[:2]


def test_a_share_of_the_run_between_log_entries(tmp_path):
    trainer = train(tmp_path, {**PLAIN, "logging_steps": 0.25}, save_every=3)
    assert [step for step, *_ in losses(trainer)] == [2, 4, 6, 8]


def test_moments_are_taken_over_and_rates_are_not(tmp_path):
    train(tmp_path / "one", {**PLAIN, "learning_rate": 0.5, "lr_scheduler_type": "constant"}, stop=2)
    file = tmp_path / "one" / "checkpoint-2" / "optimizer.pt"
    saved = torch.load(file, weights_only=True)
    seen = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            inner = kwargs["optimizer"].optimizer
            seen["state"] = [
                {k: v.clone() for k, v in inner.state[p].items()} for g in inner.param_groups for p in g["params"]
            ]
            seen["rates"] = {group["lr"] for group in inner.param_groups}

    constant = {**PLAIN, "lr_scheduler_type": "constant"}
    continued = train(tmp_path / "two", constant, optimizer_state=file, callbacks=[Look()])
    assert seen["rates"] == {0.01}
    assert len(seen["state"]) == len(saved["state"])
    for number, state in enumerate(seen["state"]):
        assert float(state["step"]) == 2
        assert torch.equal(state["exp_avg"], saved["state"][number]["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], saved["state"][number]["exp_avg_sq"])
    fresh = train(tmp_path / "three", constant)
    assert not all(torch.equal(v, weights(fresh)[n]) for n, v in weights(continued).items())
    # A resumed run takes its own checkpoint's moments, not those it began with.
    with pytest.raises(KilledError):
        train(tmp_path / "four", constant, optimizer_state=file, callbacks=[KillAt(5, "end")])
    assert_same(train(tmp_path / "four", constant, optimizer_state=file), continued)


def test_moments_of_another_model_are_refused(tmp_path):
    file = tmp_path / "optimizer.pt"
    file.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"optimizer\.pt: not the optimizer state of this model"):
        train(tmp_path / "a", optimizer_state=file)
    train(tmp_path / "two", stop=2, model=tiny_model("llama", vocab_size=64))
    with pytest.raises(StoreError, match=r"holds parameter groups of .* use `optimizer: fresh`"):
        train(tmp_path / "a", optimizer_state=tmp_path / "two" / "checkpoint-2" / "optimizer.pt")


def test_runs_that_stop_early_or_diverge_are_errors(tmp_path):
    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    with pytest.raises(TrainingError, match="stopped after 1 of 8 steps"):
        train(tmp_path / "a", callbacks=[Early()])
    with pytest.raises(TrainingError, match="NaN or infinite"):
        train(tmp_path / "b", {**PLAIN, "learning_rate": 1e30, "max_grad_norm": 0.0})


def test_progress_counts_the_segment(tmp_path):
    told = []
    train(tmp_path, stop=3, key="a")
    train(tmp_path, start=3, stop=5, key="b", previous_key="a", report=lambda *n: told.append(n))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", RESERVED)
def test_arguments_that_opmix_owns(name):
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: {RESERVED[name]}; remove it"):
        checked_arguments({name: 1})


def test_unknown_arguments_are_named_with_the_nearest():
    with pytest.raises(ConfigError) as error:
        checked_arguments({"learning_rat": 1, "quux": 2, "max_steps": 3, "bf16": True})
    assert len(error.value.problems) == 3
    assert "did you mean 'learning_rate'?" in str(error.value)


def test_markers_say_whose_they_are(tmp_path):
    train(tmp_path, stop=4)
    marker = json.loads((tmp_path / "checkpoint-4" / MARKER).read_text())
    assert (marker["key"], marker["step"]) == ("k", 4)
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth"} <= set(marker["files"])
