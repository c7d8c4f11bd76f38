"""The chain of step keys: one input changed, and exactly these steps are stale."""

from copy import deepcopy

import pytest
import yaml
from lives import content, facts, life, stage

from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.steps import HARMLESS, DataFacts, chain, differences
from opmix.settings.loading import validated
from opmix.settings.reading import apply_override

STAGES = (
    stage("one", 10, domains=["alpha", "beta"], prefix=0.5),
    stage("two", 6, add=["gamma"]),
    stage("three", 4, mixture="current"),
)
ONE = ["01-one/before", "01-one/train-5", "01-one/search-5", "01-one/train-10", "01-one/model", "01-one/after"]
TWO = ["02-two/before", "02-two/search-0", "02-two/train-6", "02-two/model", "02-two/after"]
THREE = ["03-three/before", "03-three/train-4", "03-three/model", "03-three/after"]
ALL = ["start", *ONE, *TWO, *THREE]


def changed(*overrides, data=None, drop=()):
    made = deepcopy(content(*STAGES))
    for override in overrides:
        apply_override(made, override)
    return validated(LifecycleConfig, {k: v for k, v in made.items() if k not in drop}), data or facts()


def stale(config, data, seed=0):
    before = {step.name: step for step in chain(life(*STAGES), facts(), 0)}
    now = chain(config, data, seed)
    assert len({step.name for step in now}) == len(now)
    return [s.name.removeprefix("seed-0/") for s in now if s.name not in before or before[s.name].key != s.key]


def test_the_steps_of_a_life():
    assert [s.name for s in chain(life(*STAGES), facts(), 3)] == [f"seed-3/{name}" for name in ALL]
    assert stale(*changed()) == []


def without(steps, *gone):
    return [step for step in steps if step not in gone]


FROM_TRAIN_ONE = without(ALL, "start", "01-one/before")
FROM_SEARCH_TWO = [*without(TWO, "02-two/before"), *THREE]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["architecture.hidden_size=8"], ALL),
        # A budget moves the schedule of its stage, so all of it, and what follows.
        (["stages.1.tokens=1536"], [s.replace("train-6", "train-12") for s in FROM_SEARCH_TWO]),
        (["stages.2.tokens=1024"], ["03-three/train-8", "03-three/model", "03-three/after"]),
        (["stages.1.probes.steps=3"], FROM_SEARCH_TWO),
        (["stages.1.probes.adaptive=true"], FROM_SEARCH_TWO),
        (["probes.tolerance=0.2"], FROM_SEARCH_TWO),  # the first stage rebalances, where nothing looks early
        (["stages.1.decision.draws=20"], FROM_SEARCH_TWO),
        (["stages.1.trainer.weight_decay=0.5"], FROM_SEARCH_TWO),
        (["stages.2.trainer.weight_decay=0.5"], THREE[1:]),
        (["probes.steps=3"], without(FROM_TRAIN_ONE, "01-one/train-5")),
        (["trainer.learning_rate=0.5"], FROM_TRAIN_ONE),
        (["schedule={kind: cosine}"], FROM_TRAIN_ONE),
        # Only the part after the decision is trained otherwise.
        (["stages.0.solve.kl=0.2"], without(FROM_TRAIN_ONE, "01-one/train-5")),
        (["stages.0.prefix_mixture=size"], FROM_TRAIN_ONE),
        (["stages.2.mixture=uniform"], THREE[1:]),
        (["stages.1.replay=repeat"], FROM_SEARCH_TWO),
        (["stages.2.optimizer=continued"], THREE[1:]),
        (["evaluation.sequences=8"], [s for s in ALL if s.endswith(("before", "after"))]),
        (["domains.gamma.max_epochs=3"], FROM_SEARCH_TWO),
        (["stages.1.solve.max_epochs=3"], FROM_SEARCH_TWO),
        (["sequence_length=16"], None),
        # What is shown, where data lie, what stays on disk and how fast it goes.
        (["evaluation.every=1000"], FROM_TRAIN_ONE),
        (["checkpoint_every=500", "keep.models=last", "num_proc=2", "cache_dir=elsewhere"], []),
        (["stages.0.phase=pretraining", "domains.delta=other.jsonl", "seeds=[0, 1]"], []),
        (["domains.alpha.train=moved/alpha.jsonl"], []),
        ([f"trainer.{name}=1" for name in sorted(HARMLESS)], []),
    ],
    ids=lambda value: " ".join(value)[:40] if value and "=" in value[0] else "",
)
def test_one_change_and_what_it_makes_stale(overrides, expected):
    found = stale(*changed(*overrides))
    if expected is None:
        assert [s for s in found if not s.endswith("start")] == found
        assert len(found) == len(ALL) - 1
    else:
        assert found == expected


def test_data_make_stale_what_reads_them():
    gamma = stale(*changed(data=facts(gamma="other")))
    assert gamma == [*TWO, *THREE]
    # A domain on offer from the start: the first measurement too.
    assert stale(*changed(data=facts(alpha="other"))) == without(ALL, "start")
    # On offer nowhere: nothing.
    assert stale(*changed(data=facts(delta="other"))) == []


def test_a_tokenizer_or_a_starting_checkpoint_changes_everything():
    other = DataFacts(tokenizer="u", fingerprints=facts().fingerprints, rows=facts().rows)
    assert stale(*changed(data=other)) == ALL
    other = DataFacts(tokenizer="t", fingerprints=facts().fingerprints, rows=facts().rows, model="x")
    assert stale(*changed(data=other)) == ALL


def test_seeds_share_a_starting_checkpoint_and_nothing_else():
    start = {"architecture": None, "tokenizer": None, "model": "m"}
    steps = {seed: chain(life(*STAGES, **start), facts(), seed) for seed in (0, 1)}
    assert steps[0][0].key == steps[1][0].key
    assert all(a.key != b.key for a, b in zip(steps[0][1:], steps[1][1:], strict=True))
    scratch = [chain(life(*STAGES), facts(), seed)[0].key for seed in (0, 1)]
    assert scratch[0] != scratch[1]


def test_a_stage_appended_leaves_what_is_done():
    config = life(*STAGES, stage("four", 4, add=["delta"]))
    assert all(name.startswith("04-four") for name in stale(config, facts()))


def test_renaming_a_domain_makes_stale_what_it_was_in():
    text = yaml.safe_dump(content(*STAGES)).replace("gamma", "omega").replace("data/omega", "data/gamma")
    data = facts(omega="gamma")
    data = DataFacts(tokenizer="t", fingerprints=data.fingerprints, rows={**data.rows, "omega": 100})
    assert stale(validated(LifecycleConfig, yaml.safe_load(text)), data) == [*TWO, *THREE]


def test_differences_say_what_and_then_what_follows():
    was = {s.name: s.inputs for s in chain(life(*STAGES), facts(), 0)}
    config, data = changed("stages.1.trainer.weight_decay=0.5", "stages.1.solve.kl=0.2", data=facts(gamma="x"))
    now = {s.name: s.inputs for s in chain(config, data, 0)}
    found = differences(was["seed-0/02-two/search-0"], now["seed-0/02-two/search-0"])
    assert found == [
        "data of gamma changed",
        "search.solve.kl: None -> 0.2",
        "search.trainer.weight_decay: None -> 0.5",
    ]
    found = differences(was["seed-0/02-two/train-6"], now["seed-0/02-two/train-6"])
    assert found == [
        "data of gamma changed",
        "trainer.weight_decay: None -> 0.5",
        "follows seed-0/02-two/search-0",
    ]
    assert (
        differences(was["seed-0/03-three/after"], now["seed-0/03-three/after"])[-1] == "follows seed-0/03-three/model"
    )
    assert differences({"data": {"a": "1"}, "x": {}}, {"data": {"b": "1"}, "x": {"y": 1}}) == [
        "data of a is gone",
        "data of b is new",
        "x.y: None -> 1",
    ]
    assert differences(now["seed-0/start"], now["seed-0/start"]) == []
