"""Where limits on losses contradict each other: the smallest ones that some mixture meets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opmix.errors import SolverError
from opmix.mixing.constraints import Constraints
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve
from opmix.protocols.law import MixingLaw


def attainable_limits(law: MixingLaw, coordinates: Coordinates, constraints: Constraints) -> list[str]:
    """A sentence with the limits that the mixture nearest to all of them would need; none where limits are not what contradicts.

    The nearest mixture is the one whose largest loss over its limit is least, under all other constraints.
    """
    limits = constraints.max_loss
    if not limits:
        return []
    reference = np.array([limits.get(metric, np.inf) for metric in law.metrics])
    settings = SolveSettings(objective="worst_case", reference=reference, kl=0.0)
    others = replace(constraints, max_loss={}, max_loss_labels={}, current_loss={})
    try:
        nearest = solve(law, coordinates=coordinates, settings=settings, constraints=others).mixture
    except SolverError:
        return []
    losses = dict(zip(law.metrics, map(float, law.predict(nearest.weights)[0]), strict=True))
    needed = [_told(m, losses[m], constraints) for m, limit in limits.items() if losses[m] > limit]
    return [f"the smallest loss limits that can be met together: {', '.join(needed)}"] if needed else []


def _told(metric: str, loss: float, constraints: Constraints) -> str:
    current = constraints.current_loss.get(metric)
    if current is None:
        return f"{metric} {np.ceil(loss * 1e4) / 1e4:.4f} nats"
    return f"{metric} {np.ceil((loss / current - 1) * 1000) / 10:.1f} %"
