"""Which rows a stage of a life draws after those before it, and whether its optimizer goes on."""

import json
import shutil

import pytest
from lives import fixed, outcome_of, same, stage, stages, weights

from opmix.errors import DataError, StoreError


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
        fixed("one", 4, domains=["alpha", "beta"]),
        stage("two", 4, add=["gamma"]),
        domains=domains,
    )
    toys.live(config, tmp_path / "life")
    _, two = stages(tmp_path / "life")
    assert two["notes"] == ["alpha is used up and no longer on offer"]
    assert two["mixture"]["alpha"] == 0
    assert set(two["mixture"]) == {"alpha", "beta", "gamma"}
    assert rows_of(drawn[-1], "alpha") == []
    assert set(two["forgetting"]) == {"alpha", "beta"}


def test_dropping_all_that_was_learned_is_refused_before_it_is_trained(toys, tmp_path, drawn):
    config = toys.config(
        fixed("one", 2, domains=["alpha"]),
        stage("two", 2, domains=["beta", "gamma"], drop=["alpha"]),
    )
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
