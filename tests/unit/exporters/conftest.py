from export_runs import corpus, fitted_run, make_run  # noqa: F401 - fixtures

collect_ignore = ["consumers"]  # scripts that run where trainers are installed
