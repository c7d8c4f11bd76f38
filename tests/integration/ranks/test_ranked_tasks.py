"""A task of several GPUs is done by as many ranks, which hold a part of the model each; one of them killed, it is begun again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from search_files import write_search

pytestmark = pytest.mark.cluster
RANKS = (
    "executor.kind=launch",
    "executor.launch='{command}'",
    "executor.resources.gpus=2",
    "executor.save_every=5",
    "trainer.fsdp=true",
)


@pytest.fixture
def search(tmp_path):
    return write_search(
        tmp_path,
        model={"name": "model", "dtype": "float32"},
        trainer={"learning_rate": 1e-2, "batch": 8, "micro_batch": 4},
        probes={"steps": 20, "rank": 2, "adaptive": False},
    )


def begun(file, out, *settings):
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "opmix", "search", str(file), "--out", str(out), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def ended(driver):
    said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said[1][-3000:]


def a_rank_of(folder):
    """A process that does a task of a run folder, not what started it."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = file.read_bytes().decode(errors="replace").split("\0")
            if "task" in words and str(folder) in words and "torch.distributed.run" not in words:
                return int(file.parent.name)
    return None


def test_a_task_of_two_ranks_is_the_task_of_one_process(search, tmp_path):
    ended(begun(search, tmp_path / "one"))
    driver, out = begun(search, tmp_path / "two", *RANKS), tmp_path / "two"
    end = time.monotonic() + 300
    while not list(out.glob("probes/*-parts/checkpoint-*/complete.json")) or (rank := a_rank_of(out)) is None:
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(rank, signal.SIGKILL)
    ended(driver)
    one, two = (json.loads((tmp_path / name / "mixture.json").read_text()) for name in ("one", "two"))
    assert two["decision"]["action"] == one["decision"]["action"]
    assert two["mixture"] == pytest.approx(one["mixture"], abs=1e-3)
    for name in ("probe-01-code", "proxies"):
        keys = [
            json.loads((tmp_path / n / "steps" / f"{name}.json").read_text())["fingerprint"] for n in ("one", "two")
        ]
        assert keys[0] == keys[1]
    assert any("SIGKILL" in file.read_text() or "Signal 9" in file.read_text() for file in (out / "logs").iterdir())
