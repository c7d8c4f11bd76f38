"""A process of `LocalExecutor` for tests, without torch: tasks square a number, dawdle, fail, or die once or always."""

import os
import signal
import sys
import time
from pathlib import Path

from opmix.errors import TrainingError
from opmix.execution.worker import serve
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
            (folder / f"begun-{task.name}").write_text(str(os.getpid()))
            time.sleep(said.get("seconds", 0.0))
        seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        RunStore(folder).step(
            task.name, {"number": said["number"]}, lambda: {"square": said["number"] ** 2, "pid": os.getpid(), **seen}
        )

    return do


if __name__ == "__main__":
    serve(Path(sys.argv[1]), lambda: worker(Path(sys.argv[1])))
