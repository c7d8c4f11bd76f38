"""The end of every verb: what goes wrong or is stopped becomes a sentence on standard error and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from opmix.compute.budget import speaks
from opmix.errors import OpMixError

DEBUG = "--debug"
STOPPED = "stopped: what was finished is kept, and the same command goes on from there"
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


@contextmanager
def last_net(*, debug: bool) -> Iterator[None]:
    """Around a verb: an error becomes one message and exit code 1, a stop one sentence and 130 or 143.

    Args:
        debug: Let the traceback of an error that opmix did not foresee pass.

    Raises:
        SystemExit: The verb's own, or that of what stopped it.
    """
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        # Workers inherit this handler; theirs to die at once, as without it. A second signal ends the process at once, too.
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), number)
        raise SystemExit(_TERMINATED)  # passes `except Exception`, so locks are released and temporary files removed

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except SystemExit as stop:
        if stop.code in (_INTERRUPTED, _TERMINATED):
            _say(STOPPED)
        raise
    except KeyboardInterrupt:  # before the verb was reached
        _say(STOPPED)
        sys.exit(_INTERRUPTED)
    except OpMixError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except Exception as error:  # whatever nobody foresaw
        if debug:
            raise
        _say(unforeseen(error))
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def unforeseen(error: Exception) -> str:
    """One sentence on an error of no class of ours: what, where its traceback is, what to do."""
    from opmix.runs.files import full_disk

    said = " ".join(str(error).split())[:300] or "no message"
    if (full := full_disk(error)) is not None:
        return f"error: {full}"
    if isinstance(error, MemoryError):
        return f"error: out of memory ({said}); use a smaller batch, shorter sequences or fewer domains"
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror or said}; check the path and its permissions"
    return (
        f"error: {type(error).__name__}: {said}; opmix did not foresee this. {_logged(error)}"
        f"`{DEBUG}` shows it here; please report it"
    )


def _logged(error: Exception) -> str:
    from opmix.runs.files import default_cache_dir, write_text

    text = f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    path: Path = default_cache_dir() / "last-error.log"
    try:
        write_text(path, text.encode(errors="backslashreplace").decode())
    except (OpMixError, RuntimeError):  # nowhere to write, or no home folder
        return ""
    return f"The traceback is in {path}, "


def _say(sentence: str) -> None:
    from opmix.progress.display import terminal

    stopped = sentence == STOPPED
    if not speaks():  # of several ranks each tells what it alone may know
        if stopped:
            return
        sentence = f"rank {os.environ['RANK']}: {sentence}"
    shown = sentence.encode(errors="backslashreplace").decode()
    terminal(stderr=True).print(shown, style=None if stopped else "bold red", soft_wrap=True)
