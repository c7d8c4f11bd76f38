"""`make gpu-check`: nothing is claimed without a device, and what needs none is rehearsed on the CPU."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

CHECK = Path(__file__).parents[3] / "benchmarks" / "gpu_check.py"


def check(*words):
    command = [sys.executable, str(CHECK), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_nothing_is_claimed(tmp_path):
    ended = check("--out", tmp_path / "out")
    assert ended.returncode == 0
    assert "there is no CUDA device here; nothing was checked" in ended.stdout
    assert not (tmp_path / "out").exists()


def test_facts_and_verdicts_are_kept(tmp_path):
    ended = check("--device", "cpu", "--only", "device,bf16,gguf", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["checks"]["device"] == {"skipped": "the CPU was asked for"}
    assert found["checks"]["bf16"]["ok"]
    assert found["checks"]["bf16"]["nats_apart"]["device"] == 0  # the CPU against itself
