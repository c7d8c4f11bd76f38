"""Who is on offer when, how many steps there are, and where decisions fall."""

import pytest
from lives import STEP, life, stage

from opmix.lifecycle.stages import resolve


def segments(**settings):
    found = resolve(life(stage("one", 20, domains=["alpha", "beta"], **settings)))[0].segments
    assert [p.number for p in found] == list(range(len(found)))
    return [(p.start, p.stop, p.decided) for p in found]


def test_domains_come_and_go():
    one, two, three, four = resolve(
        life(
            stage("one", 4, domains=["alpha", "beta"]),
            stage("two", 4, add=["gamma"]),
            stage("three", 4, add=["alpha"], drop=["beta"]),
            stage("four", 4, domains=["beta", "delta"], add=["gamma"]),
        )
    )
    assert (one.domains, one.before, one.new, one.weighed) == (("alpha", "beta"), (), ("alpha", "beta"), None)
    assert (two.domains, two.before, two.new) == (("alpha", "beta", "gamma"), ("alpha", "beta"), ("gamma",))
    assert two.weighed == ("gamma",)
    # A domain both old and new is weighed on its own; one that is dropped stays among those that are measured.
    assert (three.domains, three.weighed, three.new) == (("alpha", "gamma"), ("alpha",), ())
    assert three.seen == ("alpha", "beta", "gamma")
    assert (four.domains, four.before, four.new) == (("beta", "delta", "gamma"), ("alpha", "gamma"), ("delta",))
    assert [s.label for s in (one, four)] == ["01-one", "04-four"]


def test_a_checkpoint_brings_its_mixture():
    config = {"architecture": None, "tokenizer": None, "model": "m", "old_mixture": {"alpha": 0.7, "beta": 0.3}}
    (only,) = resolve(life(stage("one", 4, add=["gamma"]), **config))
    assert (only.domains, only.before, only.new) == (("alpha", "beta", "gamma"), ("alpha", "beta"), ("gamma",))
    assert (only.weighed, only.from_scratch, len(only.segments)) == (("gamma",), False, 1)
    (plain,) = resolve(life(stage("one", 4, domains=["alpha", "beta"]), **{**config, "old_mixture": None}))
    assert (plain.weighed, plain.new) == (None, ("alpha", "beta"))


def test_a_model_from_scratch_begins_with_a_prefix():
    assert segments() == [(0, 4, False), (4, 20, True)]
    assert segments(prefix=0) == [(0, 20, True)]
    assert segments(prefix=0.25) == [(0, 5, False), (5, 20, True)]
    assert segments(mixture="uniform") == [(0, 20, False)]
    later = resolve(life())[1]
    assert [(p.start, p.stop, p.decided) for p in later.segments] == [(0, 4, True)]


def test_deciding_again_every_so_many_tokens():
    assert segments(prefix=0, remix_every=8 * STEP) == [(0, 8, True), (8, 16, True), (16, 20, True)]
    assert segments(prefix=0.2, remix_every=10 * STEP) == [(0, 4, False), (4, 14, True), (14, 20, True)]
    assert segments(prefix=0.2, remix_every=100 * STEP) == [(0, 4, False), (4, 20, True)]
    assert len(segments(prefix=0, remix_every=1)) == 20


def test_budgets_are_whole_steps_and_stages_override_the_trainer():
    own = {"gradient_accumulation_steps": 2, "learning_rate": 0.5}
    one, two = resolve(life(stage("one", 8, domains=["alpha", "beta"], trainer=own), stage("two", 8, add=["gamma"])))
    assert (one.steps, one.rows_per_step, one.tokens) == (4, 8, 8 * STEP)
    assert (two.steps, two.rows_per_step, two.tokens) == (8, 4, 8 * STEP)
    assert (one.trainer["learning_rate"], two.trainer["learning_rate"]) == (0.5, 0.01)


@pytest.mark.parametrize(
    ("life_wide", "stages", "trainer", "expected"),
    [
        (None, None, {}, ("warmup_stable_decay", 0, {"num_decay_steps": 1, "min_lr_ratio": 0.1})),
        (None, None, {"lr_scheduler_type": "linear"}, ("linear", None, None)),
        (
            {"kind": "cosine", "warmup": 0.5},
            None,
            {"lr_scheduler_type": "linear"},
            ("cosine_with_min_lr", 4, {"min_lr_rate": 0.1}),
        ),
        ({"kind": "cosine"}, {"kind": "constant", "warmup": 0.25}, {}, ("constant_with_warmup", 2, None)),
    ],
)
def test_schedules(life_wide, stages, trainer, expected):
    (found,) = resolve(
        life(stage("one", 8, domains=["alpha", "beta"], schedule=stages, trainer=trainer), schedule=life_wide)
    )
    assert tuple(found.trainer.get(k) for k in ("lr_scheduler_type", "warmup_steps", "lr_scheduler_kwargs")) == expected
