from export_runs import corpus, fitted_run, make_run  # noqa: F401 - fixtures
from school import school  # noqa: F401 - a fixture
