"""What docs/reliability.md promises of a search that is done again: elsewhere the same decision, here the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

pytestmark = pytest.mark.slow

KERNELS = [("default", 1), ("avx2", 1), ("avx2", 2), ("default", 1)]
"""`ATEN_CPU_CAPABILITY` and threads; the last is the first again."""


@pytest.fixture(scope="module")
def searches(tmp_path_factory, forked):
    """Bytes of mixture.json of one search under each of these, in a process each; threads must be told before torch is read."""
    base = tmp_path_factory.mktemp("same")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(base / "model")
    tokenizer.save_pretrained(base / "model")
    files = write_toy_domains(base, ("alpha", "beta"), 120)
    content = {
        "model": str(base / "model"),
        "domains": {name: {"train": str(file), "holdout": 0.2} for name, file in files.items()},
        "old_mixture": {"alpha": 0.9, "beta": 0.1},
        "budget": 20_000,
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        "probes": {"steps": 8, "rank": 4},
        "proxies": {"eval_sequences": 16},
        "cache_dir": str(base / "cache"),
    }
    (base / "search.yaml").write_text(yaml.safe_dump(content))
    found = []
    for number, (kernels, threads) in enumerate(KERNELS):
        out = base / str(number)
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH")]))
        told = {"ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        told["OMP_WAIT_POLICY"] = (
            "passive"  # threads that spin while another process has their core take thirty times as long
        )
        words = ("search", str(base / "search.yaml"), "--out", str(out))
        command = forked(*words) if threads == 1 else [sys.executable, "-m", "opmix", *words]
        if kernels == "default":  # a process that is forked finds its kernels when it first computes
            asked = forked("-c", "import torch; print(torch.backends.cpu.get_cpu_capability())")
            assert subprocess.check_output(asked, env={**os.environ, **told}) == b"DEFAULT\n"
        ended = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        found.append((out / "mixture.json").read_bytes())
    return found


def test_the_same_kernels_and_threads_give_the_same_bytes(searches):
    assert searches[0] == searches[-1]


def test_other_kernels_and_threads_decide_the_same_within_the_interval(searches):
    first, *others = map(json.loads, searches)
    for other in others:
        assert other["decision"]["action"] == first["decision"]["action"]
        for name, (low, high) in first["interval"].items():
            assert low <= other["optimum"][name] <= high
