"""Scripts of `benchmarks/`, run in a test's own process: another one would read torch and transformers anew, ten seconds each."""

import io
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def ran(script, *words):
    """The exit code of a script below `benchmarks/`, and what it printed; the environment that it sets ends with it."""
    path, code, before = BENCHMARKS / script, 0, dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", [str(path), *map(str, words)])
        patch.syspath_prepend(path.parent)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)
    return code, said.getvalue()
