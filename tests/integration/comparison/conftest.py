from contests import _quiet, arena, finished  # noqa: F401 - fixtures
