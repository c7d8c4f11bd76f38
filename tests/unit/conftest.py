"""What all unit tests share."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quick_collections():
    """A Trainer collects garbage when it ends: a third of a second each, unless all of torch is out of the collector's sight."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
