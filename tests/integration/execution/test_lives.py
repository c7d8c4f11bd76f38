"""Seeds and compared methods in processes of their own: the bytes of one process, also where a worker or the driver is killed."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml
from contests import Arena, on_chats
from lives import NAMES, Toys, content, fixed, same, stage, weights
from test_slots import needs_proc, wait_for, workers_of

from opmix.cli.console import quiet_libraries
from opmix.comparison.run import run_compare
from opmix.comparison.status import compare_status
from opmix.errors import TrainingError
from opmix.execution.local import LocalExecutor
from opmix.lifecycle.status import run_status
from opmix.testing import write_toy_chats, write_toy_domains

pytestmark = pytest.mark.slow
TWO = {"kind": "local", "slots": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    quiet_libraries()
    folder = tmp_path_factory.mktemp("lives")
    write_toy_domains(folder / "data", NAMES, 60)
    return folder


@pytest.fixture
def slots(monkeypatch, forked):
    """Processes of slots have read torch when they are started; in test_slots.py and where some are killed they start from nothing."""
    monkeypatch.setitem(LocalExecutor.__init__.__kwdefaults__, "command", forked("task"))


def events(out):
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def handed_out(out):
    return [event["tasks"] for event in events(out) if event["event"] == "handed_out"]


def check_same(one, other, *names):
    for name in [*names, *(path.relative_to(one) for path in one.rglob("tables/*.csv"))]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    models = sorted(path.parent.relative_to(one) for path in one.rglob("model/model.safetensors"))
    assert models
    for model in models:
        assert same(weights(one / model), weights(other / model)), model
    assert models == sorted(path.parent.relative_to(other) for path in other.rglob("model/model.safetensors"))


def test_two_seeds_are_lived_at_once_and_are_those_of_one_process(folder, slots, tmp_path):
    toys, one, two = Toys(folder), tmp_path / "one", tmp_path / "two"
    settings = {"seeds": [0, 1], "keep": {"models": "last", "probes": False}}
    toys.live(toys.config(**settings), one)
    config = toys.config(**settings, executor=TWO)
    toys.live(config, two)
    check_same(one, two, "life.json")
    assert handed_out(two) == [["life-seed-0", "life-seed-1"]]
    assert {step.state for step in run_status(two).steps} == {"done"}
    assert len(run_status(two).steps) == len(run_status(one).steps)
    before = len(events(two))
    toys.live(config, two)
    assert [event["event"] for event in events(two)[before:]] == ["finished"]
    # One more seed is one life: it is lived here.
    toys.live(toys.config(**{**settings, "seeds": [0, 1, 2]}, executor=TWO), two)
    assert len(handed_out(two)) == 1


def test_methods_and_seeds_are_lived_at_once_and_are_those_of_one_process(folder, slots, tmp_path):
    arena, one, two = Arena(folder), tmp_path / "one", tmp_path / "two"
    methods = ["uniform", "op_mix", "skill_it"]
    arena.run(arena.config(methods, seeds=[0, 1]), one)
    config = arena.config(methods, seeds=[0, 1], executor=TWO)
    arena.run(config, two, only=["uniform"])
    seeds = ["life-seed-0", "life-seed-1"]
    assert handed_out(two) == [seeds, ["life-seed-0-uniform", "life-seed-1-uniform"]]
    arena.run(config, two)
    left = [f"{seed}-{name}" for seed in seeds for name in ("op_mix", "skill_it")]
    assert handed_out(two)[2:] == [left]
    check_same(one, two, "compare.json")
    assert {step.state for step in compare_status(two).steps} == {"done"}


@pytest.mark.cluster
def test_methods_that_train_otherwise_and_on_other_rows(tmp_path):
    write_toy_domains(tmp_path, ["web"], 80)
    write_toy_chats(tmp_path, {"terse": 1}, 60)
    methods: dict = {"sdft": {}, "ewc": {}, "full_retraining": {}, "lora_merge": {}, "odm": {}}
    one, two = tmp_path / "one", tmp_path / "two"
    run_compare(on_chats(tmp_path, methods), out=one, base=tmp_path)
    run_compare(on_chats(tmp_path, methods, executor=TWO), out=two, base=tmp_path)
    assert handed_out(two) == [["life-seed-0"], [f"life-seed-0-{name}" for name in methods]]
    assert (two / "data-sdft.json").read_bytes() == (one / "data-sdft.json").read_bytes()
    check_same(one, two, "compare.json")


def test_what_stops_a_life_is_said_as_in_one_process(folder, slots, tmp_path):
    toys, said = Toys(folder), []
    wild = {"learning_rate": 90.0, "optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0}
    stages = [fixed("one", 40, domains=["alpha", "beta"], trainer=wild)]
    for name, settings in (("one", {}), ("two", {"executor": TWO})):
        with pytest.raises(TrainingError) as caught:
            toys.live(toys.config(*stages, seeds=[0, 1], **settings), tmp_path / name)
        said.append(str(caught.value))
    # Either seed may be the first that stops; neither is begun again, for that would come to the same.
    assert re.sub(r"\d+", "N", said[0]) == re.sub(r"\d+", "N", said[1])


@pytest.mark.cluster
def test_jobs_that_a_command_starts_live_seeds_too(folder, tmp_path):
    toys, one, two = Toys(folder), tmp_path / "one", tmp_path / "two"
    stages = [fixed("one", 6, domains=["alpha", "beta"]), stage("two", 4, add=["gamma"])]
    toys.live(toys.config(*stages, seeds=[0, 1]), one)
    executor = {"kind": "launch", "slots": 2, "launch": "{command}"}
    toys.live(toys.config(*stages, seeds=[0, 1], executor=executor), two)
    check_same(one, two, "life.json")
    assert (two / "logs" / "life-seed-1.txt").exists()


def begun(file, out):
    return subprocess.Popen(
        [sys.executable, "-m", "opmix", "run", str(file), "--out", str(out), "--set", "executor.slots=2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.cluster
@needs_proc
def test_killed_workers_and_a_killed_driver_go_on_to_the_same_bytes(folder, tmp_path):
    one, two, file = tmp_path / "one", tmp_path / "two", folder / "life.yaml"
    told = content(
        stage("one", 40, domains=["alpha", "beta"], prefix=0.5),
        stage("two", 20, add=["gamma"]),
        seeds=[0, 1],
        checkpoint_every=2 * 128,
        cache_dir=str(folder / "data" / "cache"),
        probes={"steps": 12, "rank": 2},
    )
    file.write_text(yaml.safe_dump(told))
    toys = Toys(folder)
    toys.live(toys.config(**{k: v for k, v in told.items() if k != "stages"}, stages=told["stages"]), one)

    def checkpoint(stage):
        return lambda: next(two.glob(f"seed-*/{stage}/checkpoints/checkpoint-*/complete.json"), None)

    driver = begun(file, two)
    wait_for(checkpoint("01-one"), driver)
    shown = run_status(two)
    assert 0 < sum(step.state == "running" for step in shown.steps) <= 2
    os.kill(workers_of(driver)[0], signal.SIGKILL)
    wait_for(checkpoint("02-two"), driver)
    driver.kill()
    _, said = driver.communicate(timeout=60)
    assert "was killed by signal 9" in said
    again = begun(file, two)
    _, said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    check_same(one, two, "life.json")
    trained = [event["step"] for event in events(two) if event["event"] == "end"]
    assert len(trained) == len(set(trained))  # what was finished was not done again
