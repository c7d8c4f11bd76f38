"""Toy data, and one finished comparison to look at."""

import pytest
from contests import NAMES, Arena

from opmix.cli.console import quiet_libraries
from opmix.testing import write_toy_domains


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    quiet_libraries()


@pytest.fixture(scope="session")
def arena(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    write_toy_domains(folder / "data", NAMES, 60)
    return Arena(folder)


@pytest.fixture(scope="session")
def finished(arena, tmp_path_factory):
    """Four methods and two seeds: configuration and result. Not to be changed."""
    config = arena.config(["op_mix", "uniform", "full_retraining", "lora_merge"], seeds=[0, 1])
    return config, arena.run(config, tmp_path_factory.mktemp("finished") / "compare")
