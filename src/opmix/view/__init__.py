"""All runs below a folder side by side: found, listed, compared, and served as a local page. Imports no torch."""

from opmix.view.runs import RunLine, find_runs
from opmix.view.server import RunServer

__all__ = ["RunLine", "RunServer", "find_runs"]
