"""What a search's own processes make of its run folder: the same context, for one task after another."""

from __future__ import annotations

from pathlib import Path

from opmix.config import parse_config
from opmix.execution.context import FILE, Context
from opmix.execution.worker import Do
from opmix.mixture_search.context import SearchContext
from opmix.progress import Silent
from opmix.runs.store import RunStore


def search_worker(folder: Path) -> Do:
    """Load model and data of a search; what comes back does its tasks.

    Raises:
        StoreError: No search handed out tasks there.
        OpMixError: Model or data cannot be loaded.
    """
    told = Context.read(folder)
    config = parse_config(told.config, where=str(folder / FILE))
    # The lock is held by the process that waits for the records.
    context = SearchContext(config, told.base, RunStore(folder), Silent(), None)
    context.prepare(None, None)
    for name, parameter in context.session.runtime.model.named_parameters():
        if name in told.frozen:
            parameter.requires_grad_(False)
    return context.session.perform
