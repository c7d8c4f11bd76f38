"""A program in one process, and on two ranks."""

import json
import os
import subprocess
import sys

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
