from lives import _quiet, finished, toys  # noqa: F401 - fixtures
