"""Schedules in shares of a run, against the rates that transformers really sets; budgets and peak memory."""

import itertools

import pytest
import torch
from transformers import TrainingArguments
from transformers.optimization import get_scheduler

from opmix.compute import memory
from opmix.compute.schedule import schedule_arguments, with_schedule


def rates(steps, arguments, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=steps, use_cpu=True, report_to="none", **arguments)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(steps),
        steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*found, scheduler.get_last_lr()[0]]


@pytest.mark.parametrize("steps", [20, 100, 333])
def test_warm_up_stable_decay(steps, tmp_path):
    found = rates(steps, schedule_arguments(steps, warmup=0.1, decay=0.2, final=0.1), tmp_path)
    warm, fall = round(0.1 * steps), steps - round(0.2 * steps)
    assert found[:warm] == pytest.approx(
        [0.1 + 0.9 * i / warm for i in range(warm)]
    )  # from the last rate, not from zero
    assert found[warm : fall + 1] == [1.0] * (fall + 1 - warm)
    assert all(a > b for a, b in zip(found[fall:], found[fall + 1 :], strict=False))
    assert found[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.1), ("linear", 0.0), ("constant", 1.0)])
def test_the_other_kinds(kind, last, tmp_path):
    found = rates(50, schedule_arguments(50, kind=kind, warmup=0.1), tmp_path)
    assert found[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[-1] == pytest.approx(last)
    assert all(a >= b for a, b in itertools.pairwise(found[5:]))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_shortest_runs_learn_something(steps, tmp_path):
    assert max(rates(steps, schedule_arguments(steps), tmp_path)[:-1]) == 1.0


def test_what_the_user_says_of_a_schedule_stays():
    own = {"lr_scheduler_type": "linear", "learning_rate": 1.0}
    assert with_schedule(own, 100, None) == own
    assert with_schedule(own, 100, {"kind": "constant"})["lr_scheduler_type"] == "constant_with_warmup"
    assert with_schedule({"learning_rate": 1.0}, 100, None)["warmup_steps"] == 2


def test_peak_memory_of_a_stretch():
    peak = memory.watch_memory()
    before = peak()
    held = torch.ones(16, 1 << 20)
    assert peak() >= before + 0.9 * held.numel() * 4
    del held
    if memory._RESET.exists():
        assert memory.watch_memory()() < peak() + (1 << 30)


def test_peak_memory_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "none" / "clear_refs")
    assert memory.watch_memory()() > 10 << 20
