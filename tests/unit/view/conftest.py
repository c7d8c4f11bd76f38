"""Sample folders, written once."""

import pytest
import samples


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return samples.write_all(tmp_path_factory.mktemp("view-samples"))
