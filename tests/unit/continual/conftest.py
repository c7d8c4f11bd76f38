"""What the tests of learners share."""

import pytest
from school import School


@pytest.fixture(scope="session")
def school(tmp_path_factory):
    return School(tmp_path_factory.mktemp("school"))
