"""Toy data, and one finished life to look at."""

import pytest
from lives import NAMES, Toys

from opmix.cli.console import quiet_libraries
from opmix.testing import write_toy_domains


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    quiet_libraries()


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    write_toy_domains(folder / "data", NAMES, 60)
    return Toys(folder)


@pytest.fixture(scope="session")
def finished(toys, tmp_path_factory):
    """A two-stage life, lived: its configuration and result. Not to be changed."""
    config = toys.config()
    return config, toys.live(config, tmp_path_factory.mktemp("finished") / "life")
