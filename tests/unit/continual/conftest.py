from school import school  # noqa: F401 - a fixture
