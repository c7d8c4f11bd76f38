"""A process of an executor for tests, without torch: tasks square a number, dawdle, fail, or die once or always."""

import os
import signal
import sys
import time
from pathlib import Path

from opmix.errors import TrainingError
from opmix.execution.worker import do_alone, serve
from opmix.runs.store import RunStore


def worker(folder: Path):
    def do(task, progress):
        said = task.payload
        print("this is for the log")
        if said.get("fails"):
            raise TrainingError(f"{task.name} diverged")
        mark = folder / f"died-{task.name}"
        if said.get("dies") == "always" or (said.get("dies") == "once" and not mark.exists()):
            mark.touch()
            sys.stderr.write("out of luck\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        with progress.task(task.name, 3) as advance:
            advance(1, 3)
            begun = folder / f"begun-{task.name}"
            seconds = 0.0 if begun.exists() else said.get("dawdles_once", 0.0)
            begun.write_text(str(os.getpid()))
            time.sleep(seconds + said.get("seconds", 0.0))
        seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        RunStore(folder).step(
            task.name, {"number": said["number"]}, lambda: {"square": said["number"] ** 2, "pid": os.getpid(), **seen}
        )

    return do


if __name__ == "__main__":
    folder, *alone = sys.argv[1:]
    if alone:
        name, _, attempt = alone
        do_alone(Path(folder), name, lambda: worker(Path(folder)), attempt=attempt, every=0.1)
    else:
        serve(Path(folder), lambda: worker(Path(folder)))
