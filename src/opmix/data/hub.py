"""Whether the Hugging Face hub has a dataset, asked once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opmix.domain import Source
from opmix.errors import DataError

_SECONDS = 10
"""That the hub has to answer."""


def check_there(source: Source) -> None:
    """Ask the hub once for a dataset; `datasets` itself asks six times over half a minute where nothing answers.

    Raises:
        DataError: There is none, it is gated, or the hub cannot be asked.
    """
    name, _, revision = source.paths[0].partition("@")
    if Path(name).is_dir():  # what `datasets` takes for the repository of that name
        return
    from huggingface_hub import HfApi

    with explained_hub(name):
        HfApi().dataset_info(name, revision=revision or None, timeout=_SECONDS)


@contextmanager
def explained_hub(name: str) -> Iterator[None]:
    """A block in which whatever the hub's libraries raise is one sentence.

    Raises:
        DataError: That sentence.
    """
    try:
        yield
    except Exception as error:  # network, unknown name, gated, broken card: each raises another kind
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: no folder here, and no dataset that the hub gives ({type(error).__name__}: {said}); expected a "
            "folder, or org/name of a dataset within reach; check the name and the network, log in for gated ones"
        ) from error
