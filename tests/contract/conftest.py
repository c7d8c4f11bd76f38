from export_runs import corpus, make_run  # noqa: F401 - fixtures
from school import school  # noqa: F401 - a fixture
