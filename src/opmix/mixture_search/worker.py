"""What a search's own processes make of its run folder: the same context, for one task after another."""

from __future__ import annotations

from pathlib import Path

from opmix.config import parse_config
from opmix.errors import StoreError
from opmix.execution.worker import Do
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.hand_over import CONTEXT
from opmix.progress import Silent
from opmix.runs.files import json_of
from opmix.runs.store import RunStore


def search_worker(folder: Path) -> Do:
    """Load model and data of a search; what comes back does its tasks.

    Raises:
        StoreError: No search handed out tasks there.
        OpMixError: Model or data cannot be loaded.
    """
    file = folder / CONTEXT
    try:
        content = json_of(file)
        config, base, frozen = content["config"], Path(content["base"]), set(content["frozen"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{file}: cannot be read ({error}); expected what a search with `executor` wrote there: start the search, "
            "it starts its tasks itself"
        ) from error
    # The lock is held by the process that waits for the records.
    context = SearchContext(parse_config(config, where=str(file)), base, RunStore(folder), Silent(), None)
    context.prepare(None, None)
    for name, parameter in context.session.runtime.model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return context.session.perform
