"""A tiny world of two old domains and a new one, the life lived in it, and children of this process that live it."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = 4 * 32  # tokens
OUR_ERROR, UNFORESEEN = 1, 3  # exit codes of a child


def settings_of_life() -> dict[str, Any]:
    """A prefix, a search, a checkpoint in the middle of training, a second stage with a new domain."""
    return {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 300, "documents": 30},
        "domains": {n: {"train": f"data/{n}.jsonl", "holdout": 0.2} for n in ("alpha", "beta", "gamma")},
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 2},
        "probes": {"steps": 4, "rank": 2},
        "proxies": {"eval_sequences": 4},
        "decision": {"draws": 10},
        "evaluation": {"sequences": 4},
        "cache_dir": "data/cache",
        "checkpoint_every": 2 * STEP,
        "stages": [
            {"name": "one", "tokens": 6 * STEP, "domains": ["alpha", "beta"], "prefix": 0.5},
            {"name": "two", "tokens": 4 * STEP, "add": ["gamma"]},
        ],
    }


@dataclass(frozen=True)
class World:
    """A folder with texts, a token cache and one run."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    def create(self) -> None:
        from opmix.testing import write_toy_domains

        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        write_toy_domains(self.root / "data", ("alpha", "beta", "gamma"), 60)

    def warm(self) -> None:
        """Live it once in this process, whose children then find everything loaded and made that a life's first steps load and make."""
        self.create()
        self.live()
        shutil.rmtree(self.run)
        keep_for_good()

    def live(self) -> None:
        """Live the life, or go on with it."""
        from opmix.lifecycle.life import run_life
        from opmix.lifecycle.loading import LifecycleConfig
        from opmix.settings.loading import validated

        os.chdir(self.root)
        run_life(validated(LifecycleConfig, settings_of_life()), out=self.run, base=self.root)


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    said: str
    """The end of what it printed."""
    seconds: float

    @property
    def clean(self) -> bool:
        """Done, or stopped by one error of ours."""
        return self.code in (0, OUR_ERROR)


def in_child(
    work: Callable[[], object],
    *,
    seconds: float = 300,
    kill_after: float | None = None,
    kill_with: int = signal.SIGKILL,
    largest_file: int | None = None,
) -> Ending:
    """Do something in a fork of this process, which has the big imports behind it.

    Args:
        work: What to do.
        seconds: After which it hangs.
        kill_after: Seconds after which it is sent `kill_with`; one that was not killed by it is killed in the end.
        kill_with: A signal.
        largest_file: Bytes; longer writes fail as on a full disk.
    """
    started = time.monotonic()
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(said)
        _end_with(work, say, largest_file)
    os.close(say)
    os.set_blocking(said, False)
    text = b""
    limit = started + (seconds if kill_after is None else kill_after)
    signalled = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        text = (text + _read(said))[-4000:]
        if done:
            break
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL if signalled or kill_after is None else kill_with)
            signalled, limit = True, time.monotonic() + 30
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    os.close(said)
    return Ending(code, text.decode(errors="replace"), time.monotonic() - started)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def _end_with(work: Callable[[], object], say: int, largest_file: int | None) -> None:
    code = UNFORESEEN
    try:
        os.dup2(say, 1)
        os.dup2(say, 2)
        import torch

        from opmix.errors import OpMixError

        torch.set_num_threads(1)
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        try:
            work()
            code = 0
        except OpMixError as error:
            sys.stderr.write(f"error: {error}\n")
            code = OUR_ERROR
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else UNFORESEEN
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def import_big() -> None:
    """Once, for all children."""
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    import opmix.lifecycle.life
    import opmix.report
    import opmix.testing  # noqa: F401
    from opmix.cli.console import quiet_libraries

    quiet_libraries()
    keep_for_good()


def keep_for_good() -> None:
    """Nothing that is there now is looked at again for garbage: each training of `transformers` looks, which takes half a life's time."""
    gc.collect()
    gc.freeze()
