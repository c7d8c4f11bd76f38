"""A browser for the session and the report's sample folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples
import webdriver

from opmix.report import write_report


def pytest_collection_modifyitems(items):
    lost = webdriver.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if lost:
                item.add_marker(pytest.mark.skip(reason=lost))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with webdriver.Browser(tmp_path_factory.mktemp("profile")) as made:
        made.window(1280, 800)
        yield made


@pytest.fixture(scope="session")
def worlds():
    return {
        "continual": samples.continual_world(),
        "rebalancing": samples.rebalancing_world(),
        "swarm": samples.swarm_world(),
        "large": samples.large_world(),
    }


@pytest.fixture(scope="session")
def reports(tmp_path_factory, worlds):
    root = tmp_path_factory.mktemp("reports")
    made = samples.write_all(root)
    made["large"] = samples.write_sample(root / "large", worlds["large"], num_points=128)
    return {name: write_report(folder) for name, folder in made.items()}
