"""What every continual learner keeps to, on a real model."""

import pytest
import torch
from school import same, weights_of
from transformers import TrainerCallback

from opmix.continual.a_gem import AGem
from opmix.continual.ewc import FILE, Ewc
from opmix.continual.gem import Gem
from opmix.continual.o_lora import OLora
from opmix.methods.registry import ENTRIES
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem
from opmix.training.checkpoints import whole_checkpoints

LEARNERS = {
    "ewc": Ewc(sequences=8),
    "a_gem": AGem(memory=16),
    "gem": Gem(memory=16, batch=2),
    "o_lora": OLora(rank=2),
}
IN_PLACE = sorted(name for name, learner in LEARNERS.items() if learner.in_place)
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "bf16": True}


class KilledError(Exception):
    """What stops a run in the middle."""


class KillAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KilledError


def test_the_table_holds_every_learner_of_the_catalogue():
    listed = {e.name for e in ENTRIES if e.path.startswith("opmix.continual.")}
    assert listed == set(LEARNERS)
    for entry in ENTRIES:
        if entry.name in LEARNERS:
            assert isinstance(LEARNERS[entry.name], entry.load())
            assert entry.make() is not None
            assert entry.paper
            assert entry.family == "continual"


@pytest.mark.parametrize("name", LEARNERS)
def test_only_new_domains_are_trained_on(name):
    def proposed(old, new=None):
        stage = DecisionProblem(
            domains=("a", "b", "c"), old=old, budget_tokens=9, available_tokens=dict.fromkeys("abc", 9), new=new
        )
        return LEARNERS[name].propose(type("Bench", (), {"problem": stage})()).mixture

    assert proposed(Mixture.of({"a": 1.0})) == Mixture.of({"a": 0.0, "b": 0.5, "c": 0.5})
    assert proposed(Mixture.of({"a": 1.0}), ("c",)) == Mixture.of({"a": 0.0, "b": 0.0, "c": 1.0})
    assert proposed(Mixture.of({"a": 0.5, "b": 0.25, "c": 0.25})) == Mixture.of({"a": 0.5, "b": 0.25, "c": 0.25})
    assert proposed(None) == Mixture.uniform(("a", "b", "c"))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, ACCUMULATED], ids=["plain", "accumulated-bf16"])
@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_the_same_every_time_and_books_its_cost(school, tmp_path, name, arguments):
    start, ends, costs = weights_of(school.educated()), [], []
    for run in "ab":
        lesson = school.lesson(tmp_path / f"lesson-{run}")
        torch.manual_seed(ord(run))  # the state of the world must not matter
        model = school.teach(LEARNERS[name], school.educated(), lesson, tmp_path / run, arguments=arguments)
        ends.append(weights_of(model))
        costs.append((lesson.usage.flops, dict(lesson.usage.extra)))
    assert same(*ends)
    assert costs[0] == costs[1]
    assert not same(start, ends[0])
    assert all(torch.isfinite(v).all() for v in ends[0].values())
    extra, shape, length = costs[0][1], lesson.shape, lesson.sequence_length
    rows = {"ewc": 8, "a_gem": 4 * 4, "gem": 4 * 2, "o_lora": 0}[name]  # four steps
    assert extra.get("tokens", 0) == rows * length
    assert extra.get("flops", 0) == pytest.approx(rows * length * shape.train(length))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, ACCUMULATED], ids=["plain", "accumulated-bf16"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_killed_and_resumed_it_ends_in_the_same_bytes(school, tmp_path, name, arguments):
    learner, whole = LEARNERS[name], school.lesson(tmp_path / "whole")
    wanted = weights_of(school.teach(learner, school.educated(), whole, tmp_path / "a", arguments=arguments))
    killed = school.lesson(tmp_path / "broken")
    with pytest.raises(KilledError):
        school.teach(learner, school.educated(), killed, tmp_path / "b", arguments=arguments, callbacks=[KillAt()])
    assert [step for step, _ in whole_checkpoints(tmp_path / "b")] == [2]
    again = school.lesson(tmp_path / "broken")
    found = weights_of(school.teach(learner, school.educated(), again, tmp_path / "b", arguments=arguments))
    assert same(found, wanted)
    assert again.usage.extra == whole.usage.extra


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_life_s_first_stage_is_plain_training(school, tmp_path, name):
    lesson = school.lesson(tmp_path / "lesson", old=())
    model = school.teach(LEARNERS[name], school.educated(), lesson, tmp_path / "a")
    plain = school.teach(None, school.educated(), school.lesson(tmp_path / "other"), tmp_path / "b")
    assert not lesson.usage.extra.get("tokens")
    assert same(weights_of(model), weights_of(plain)) == (name in IN_PLACE)
    assert not (tmp_path / "lesson" / FILE).exists()


@pytest.mark.parametrize("name", LEARNERS)
def test_text_may_follow_conversations(school, tmp_path, name):
    """Rows of several lengths with positions and masked labels as memory."""
    lesson = school.lesson(tmp_path / "lesson", old=("chat", "alpha"))
    model = school.teach(LEARNERS[name], school.model(), lesson, tmp_path / "run", steps=2)
    assert all(torch.isfinite(v).all() for v in weights_of(model).values())
