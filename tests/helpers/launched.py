"""A program in one process, and on two ranks."""

import json
import os
import subprocess
import sys

import numpy as np

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def one_and_two(work, folder):
    """What `work FOLDER` wrote to `one.json` alone and to `two.json` under torchrun."""
    for launcher in ((), TORCHRUN):
        ended = subprocess.run(
            [sys.executable, *launcher, str(work), str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two")]


def same_search(found, near):
    """Of one process and of two ranks: losses up to `near`; the same keys, ledger and files; gone on with, the model given back."""
    one, two = found
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=near)
    for content in found:
        assert content["again"]
        assert content["given_back"]
    for kind in ("keys", "ledger", "left"):
        assert one[kind] == two[kind]
