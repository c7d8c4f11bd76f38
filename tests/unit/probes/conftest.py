import pytest
from probe_tasks import toy_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    return toy_rows(tmp_path_factory.mktemp("rows"))
