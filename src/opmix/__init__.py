"""opmix: in what proportions should you mix your data for the next stretch of training?

Importing opmix loads neither torch nor numpy; what needs them is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opmix.domain import Domain, Source
from opmix.errors import (
    AdapterError,
    ConfigError,
    DataError,
    InfeasibleError,
    LawError,
    ModelError,
    OpMixError,
    SolverError,
    StoreError,
    TrainingError,
)

if TYPE_CHECKING:
    from opmix.api import CompareResult, LifeResult, SearchResult, compare, run, search
    from opmix.ask_tell import AskTell
    from opmix.data import MixtureStream
    from opmix.fit import FitResult, fit_runs
    from opmix.mixing.mixture import InterpolationWeights, Mixture, ProbeDesign
    from opmix.mixture_search.callback import RemixCallback

_LAZY = {
    "AskTell": "opmix.ask_tell",
    "search": "opmix.api",
    "SearchResult": "opmix.api",
    "fit_runs": "opmix.fit",
    "FitResult": "opmix.fit",
    "run": "opmix.api",
    "LifeResult": "opmix.api",
    "compare": "opmix.api",
    "CompareResult": "opmix.api",
    "RemixCallback": "opmix.mixture_search.callback",
    "MixtureStream": "opmix.data",
    "InterpolationWeights": "opmix.mixing.mixture",
    "Mixture": "opmix.mixing.mixture",
    "ProbeDesign": "opmix.mixing.mixture",
}

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "AskTell",
    "CompareResult",
    "ConfigError",
    "DataError",
    "Domain",
    "FitResult",
    "InfeasibleError",
    "InterpolationWeights",
    "LawError",
    "LifeResult",
    "Mixture",
    "MixtureStream",
    "ModelError",
    "OpMixError",
    "ProbeDesign",
    "RemixCallback",
    "SearchResult",
    "SolverError",
    "Source",
    "StoreError",
    "TrainingError",
    "compare",
    "fit_runs",
    "run",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'opmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
