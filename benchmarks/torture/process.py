"""One part of the torture in a process of its own."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def work(task: tuple[str, Path, dict[str, Any]]) -> dict[str, Any]:
    """One part in one process."""
    name, folder, settings = task
    folder.mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path.insert(1, str(Path(__file__).parents[1]))
    from world import import_big

    import_big()
    found: dict[str, Any] = importlib.import_module(name).torture(folder, **settings)
    shutil.rmtree(folder, ignore_errors=True)
    return found
