"""`make gpu-check`: nothing is claimed without a device, and what needs none is rehearsed on the CPU."""

import json
from importlib import metadata

import pytest
import torch
from scripts import ran

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_nothing_is_claimed(tmp_path):
    code, said = ran("gpu_check.py", "--out", tmp_path / "out")
    assert code == 0
    assert "there is no CUDA device here; nothing was checked" in said
    assert not (tmp_path / "out").exists()


def test_facts_and_verdicts_are_kept(tmp_path):
    code, said = ran("gpu_check.py", "--device", "cpu", "--only", "device,bf16,gguf", "--out", tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["checks"]["device"] == {"skipped": "the CPU was asked for"}
    assert found["checks"]["bf16"]["ok"]
    assert found["checks"]["bf16"]["nats_apart"]["device"] == 0  # the CPU against itself
