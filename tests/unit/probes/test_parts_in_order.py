"""Stops of a probe on a sharded model: which parts are trained, from which checkpoint, with the parts' training left out."""

from types import SimpleNamespace

import pytest
import torch

from opmix.probes import parts
from opmix.training.checkpoints import whole_checkpoints
from opmix.training.factory import TrainSpec
from opmix.training.objectives import Usage


@pytest.fixture
def spec(tmp_path):
    """A run of ten steps of two rows on a model of one weight, each step adding one to it."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return TrainSpec(model=model, dataset=list(range(20)), output_dir=tmp_path, steps=10, seed=0)


@pytest.fixture
def trained(monkeypatch):
    """First row, steps and where the moments came from of every part."""
    seen = []

    def run(factory, part):
        state = part.optimizer_state
        seen.append((part.dataset[0], part.steps, None if state is None else state.parent.name))
        with torch.no_grad():
            part.model.weight += part.steps
        return SimpleNamespace(optimizer=torch.optim.SGD(part.model.parameters()))

    monkeypatch.setattr(parts, "run_training", run)
    return seen


def test_a_look_and_the_rest_of_the_run(spec, trained):
    parts.train_adapters_until(None, spec, 4, key="k", usage=Usage())
    with torch.no_grad():
        spec.model.weight.zero_()  # attached anew
    parts.train_adapters_until(None, spec, 10, key="k", usage=Usage())
    assert trained == [(0, 4, None), (8, 6, "checkpoint-4")]
    assert float(spec.model.weight.detach()) == 10


def test_checkpoints_between_are_gone_on_from_and_two_are_kept(spec, trained):
    parts.train_adapters_until(None, spec, 10, key="k", usage=Usage(), save_every=3)
    assert [part[1] for part in trained] == [3, 3, 3, 1]
    kept = [step for step, _ in whole_checkpoints(spec.output_dir)]
    assert kept == [6, 9]
    del trained[:]
    with torch.no_grad():
        spec.model.weight.zero_()  # another process
    parts.train_adapters_until(None, spec, 10, key="k", usage=Usage(), save_every=3)
    assert trained == [(18, 1, "checkpoint-9")]
    assert float(spec.model.weight.detach()) == 10


def test_parts_of_another_run_are_not_used(spec, trained):
    parts.train_adapters_until(None, spec, 4, key="k", usage=Usage())
    parts.train_adapters_until(None, spec, 10, key="other", usage=Usage())
    assert trained[-1] == (0, 10, None)
