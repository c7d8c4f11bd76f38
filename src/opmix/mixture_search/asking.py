"""What an `opmix.AskTell` is given: its settings as a search's, and the runs that its design asks for. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Strict

from opmix.config import SearchConfig, parse_config
from opmix.errors import ConfigError
from opmix.mixing.design import StageDesign, design_stage
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem
from opmix.results.asked import AskedRun
from opmix.settings import Bounds, Count, settings
from opmix.settings.loading import nearest

CURRENT, PROPOSAL = "current", "proposal"
"""Names of the runs that are no part of the design: the model as it is now, and the optimum."""


@settings
class AskSettings:
    """Checked as the settings of a file are; its blocks are checked as a search's."""

    domains: Annotated[list[str], Strict()]
    budget: Any
    old_mixture: dict[str, float] | None
    targets: Annotated[list[str], Strict()]
    available: dict[str, Count] | None
    mixtures: Annotated[int, Bounds(ge=0, le=10_000), Strict()] | None
    solve: dict[str, Any]
    decision: dict[str, Any]
    seed: Any


def search_of(given: AskSettings) -> tuple[SearchConfig, dict[str, int]]:
    """The settings as a search's, whose rules they follow, and the tokens that there are."""
    available, names = given.available or {}, (*given.domains, *given.targets)
    problems = [
        f"available.{n}: unknown domain{nearest(n, given.domains)}" for n in available if n not in given.domains
    ]
    if taken := [n for n in names if names.count(n) > 1]:
        problems.append(f"domains, targets: {sorted(set(taken))} named twice; expected each name once")
    if given.solve.get("unit", "nats") != "nats":
        problems.append(
            f"solve.unit: {given.solve['unit']!r}, which needs the bytes of each token; expected nats (or "
            "tell losses in bits per byte: the law takes them as they are)"
        )
    if problems:
        raise ConfigError(problems)
    content = {
        "model": "trained elsewhere",
        "domains": {name: name for name in given.domains},
        "targets": {name: name for name in given.targets},
        "law": "log_linear",
        **{key: getattr(given, key) for key in ("budget", "old_mixture", "solve", "decision", "seed")},
    }
    return parse_config({k: v for k, v in content.items() if v is not None or k == "seed"}), dict(available)


def asked_runs(problem: DecisionProblem, mixtures: int | None) -> tuple[StageDesign, tuple[AskedRun, ...]]:
    """One run a coordinate and one on their middle, as in a search; then mixtures between them, all really trained."""
    design = design_stage(problem.domains, problem.old, seed=problem.seed, new=problem.new, interpolate=False)
    E = design.coordinates.E
    count = max(4, len(E)) if mixtures is None else mixtures
    if len(E) == 2:
        grid = np.linspace(0, 1, count + 2)[1:-1]
        between = np.stack([1 - grid, grid], axis=1) @ E
    else:
        between = np.random.default_rng(problem.seed).dirichlet(np.ones(len(E)), size=count) @ E
    rows = [*zip(design.names, design.mixtures, strict=True)]
    rows += [(f"mixture {i}", row) for i, row in enumerate(between, 1)]
    runs = [AskedRun(name=name, mixture=dict(Mixture(problem.domains, row))) for name, row in rows]
    return design, (AskedRun(name=CURRENT), *runs)
