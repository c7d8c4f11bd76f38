"""A life on two ranks that hold a part of the model each (FSDP2, gloo), killed in between, is the life of one process."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from launched import TORCHRUN
from test_life_on_ranks import keys_of, life, losses_of, opmix  # noqa: F401  (a fixture)

FSDP = ("--set", "trainer.fsdp=true")


@pytest.fixture(scope="module")
def fresh_life(life):  # noqa: F811
    """The life whose moments begin anew in its second stage."""
    content = yaml.safe_load(life.read_text())
    del content["stages"][1]["optimizer"]
    file = life.with_name("fresh.yaml")
    file.write_text(yaml.safe_dump(content))
    return file


def children_of(pid):
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in told.stdout.split()]


def killed_at(file, out, stage):
    """Start a life on two ranks, and kill one when the stage has a whole checkpoint."""
    command = [sys.executable, *TORCHRUN, "-m", "opmix", "run", str(file), "--out", str(out), *FSDP]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 400
        while not (found := list((out / "seed-0" / stage / "checkpoints").glob("checkpoint-*/complete.json"))):
            assert driver.poll() is None, "the life ended before it had a checkpoint"
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(children_of(driver.pid)[-1], signal.SIGKILL)
        assert driver.wait(120) != 0
    finally:
        driver.kill()
    return found


@pytest.mark.cluster
def test_a_life_with_a_model_in_parts_is_the_life_of_one_process_also_when_a_rank_was_killed(fresh_life, tmp_path):
    opmix("run", fresh_life, "--out", tmp_path / "one")
    opmix("run", fresh_life, "--out", tmp_path / "two", *FSDP, ranks=2)
    killed = killed_at(fresh_life, tmp_path / "killed", "01-base")
    assert killed
    opmix("run", fresh_life, "--out", tmp_path / "killed", *FSDP, ranks=2)
    mixtures, losses = losses_of(tmp_path / "one")
    for name in ("two", "killed"):
        assert keys_of(tmp_path / name) == keys_of(tmp_path / "one")
        others, near = losses_of(tmp_path / name)
        for one, two in zip(mixtures, others, strict=True):
            assert two == pytest.approx(one, abs=1e-3)
        for one, two in zip(losses, near, strict=True):
            assert two == pytest.approx(one, abs=1e-3)
        assert (tmp_path / name / "seed-0" / "01-base" / "model" / "model.safetensors").is_file()
    # One process finds everything, though the configuration still asks for parts.
    before = (tmp_path / "two" / "life.json").read_bytes()
    opmix("run", fresh_life, "--out", tmp_path / "two", *FSDP)
    assert (tmp_path / "two" / "life.json").read_bytes() == before
