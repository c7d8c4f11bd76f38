"""A life killed at three moments and finished is the unbroken one, byte for byte."""

import json
import os
import signal
import subprocess
import time

import pytest
import yaml
from lives import content, stage

from opmix.runs.files import alive

pytestmark = pytest.mark.slow


def run(forked, file, out):
    return subprocess.Popen(
        forked("run", file, "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_when(process, out, ready):
    """SIGKILL as soon as something can be seen on disk; its lock is left behind."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while alive(json.loads((out / "lock").read_text())["pid"]):
        time.sleep(0.005)


def running(out):
    try:
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    return events[-1]["step"] if events and events[-1]["event"] == "begin" else None


def test_killed_in_a_probe_in_the_proxies_and_in_training(toys, forked, tmp_path):
    one = stage("one", 40, domains=["alpha", "beta"], prefix=0.5)
    settings = {
        "probes": {"steps": 12, "rank": 2},
        "proxies": {"eval_sequences": 16},
        "cache_dir": str(toys.folder / "data" / "cache"),
        "checkpoint_every": 2 * 128,
    }
    file, out, whole = toys.folder / "kill.yaml", tmp_path / "life", tmp_path / "whole"
    file.write_text(yaml.safe_dump(content(one, stage("two", 20, add=["gamma"]), **settings)))
    first, second = "seed-0/01-one", "seed-0/02-two"
    moments = [
        # one probe is kept, the next is being trained
        lambda: running(out) == f"{first}/search-20" and len(list(out.glob(f"{first}/search-20/steps/probe-*"))) == 1,
        # all probes are kept, the proxies are being evaluated
        lambda: running(out) == f"{second}/search-0" and len(list(out.glob(f"{second}/search-0/steps/probe-*"))) == 3,
        # in the middle of training: a checkpoint is there
        lambda: (
            running(out) == f"{second}/train-20" and any(out.glob(f"{second}/checkpoints/checkpoint-*/complete.json"))
        ),
    ]
    for ready in moments:
        kill_when(run(forked, file, out), out, ready)
    for folder in (out, whole):
        process = run(forked, file, folder)
        _, text = process.communicate()
        assert process.returncode == 0, text.decode()[-2000:]
    names = sorted(p.relative_to(whole) for p in whole.rglob("mixture.json"))
    assert len(names) == 4
    for name in [*names, *(p.relative_to(whole) for p in whole.rglob("*.csv")), "life.json"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for name in (p.relative_to(whole) for p in whole.rglob("*.safetensors")):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    begun = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    again = [e["step"] for e in begun if e["event"] == "begin"]
    assert len(again) == len(set(again)) + 3  # each kill cost the step it hit, and no other
