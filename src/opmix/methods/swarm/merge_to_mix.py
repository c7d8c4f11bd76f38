"""Merge to Mix (arXiv 2505.16066): which domains to train on at all, by uniform averages of models fine-tuned on one each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from opmix.methods.swarm.runs import aim, aimed, check_settings, proxy_model, settings_of, trial_rows
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.protocols.mixing_method import Proposal
from opmix.protocols.trials import TrialRunner

Subset = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MergeToMix:
    """The method: the subset whose averaged model has the lowest mean loss; its union is the mixture.

    The paper looks at all subsets. Above `max_subsets` single domains, pairs, all but one and all are evaluated, and a greedy search
    adds domains on a second-order surface through singles and pairs (exact where losses are quadratic in the weights); this is ours.
    """

    proxy_share: float | None = None
    """Tokens of a fine-tuning, of the stage's; None: one part for every domain, so that all together cost the stage once more.

    Paper: each fine-tuning reads its whole dataset.
    """
    max_subsets: int = 255
    """All subsets of up to 8 domains. Paper: all."""
    shares: Literal["size", "uniform"] = "size"
    """Inside the chosen subset. Paper: the union of datasets, so in proportion to their sizes."""

    def __post_init__(self) -> None:
        check_settings(self, counts=("max_subsets",), shares=("proxy_share",))

    def propose(self, context: TrialRunner) -> Proposal:
        """See `MixingMethod`."""
        stage, num = context.problem, len(context.problem.domains)
        every = 2**num - 1 <= self.max_subsets
        subsets = all_subsets(num) if every else some_subsets(num)
        models = [Mixture(stage.domains, row) for row in np.eye(num)]
        share = self.proxy_share if self.proxy_share is not None else 1 / num
        proxy = proxy_model(context, share, "current", {})
        trials = context.average(models, np.array([_uniform(s, num) for s in subsets]), proxy, label="merge-to-mix")
        values = aimed(trials.losses, aim(context, trials))
        best = subsets[int(values.argmin())]
        greedy: dict[str, Any] | None = None
        if not every:
            best, greedy = self._greedy(subsets, values, num)
        chosen = [stage.domains[d] for d in best]
        sizes = stage.by_size if self.shares == "size" else Mixture.uniform(stage.domains)
        rows = [
            {"subset": [stage.domains[d] for d in s], **row} for s, row in zip(subsets, trial_rows(trials), strict=True)
        ]
        return Proposal(
            mixture=Mixture.normalised({d: sizes[d] if d in chosen else 0.0 for d in stage.domains}),
            evidence={
                "settings": settings_of(self),
                "chosen": chosen,
                "all_subsets": every,
                "greedy": greedy,
                "averages": rows,
            },
        )

    def _greedy(self, subsets: list[Subset], values: FloatArray, num: int) -> tuple[Subset, dict[str, Any]]:
        """The better of what was measured and of a greedy search on the surface, by the surface's own account where it was not measured."""
        A = second_order(subsets, values, num)
        inside: Subset = min(((d,) for d in range(num)), key=lambda s: surface(A, s))
        while len(inside) < num:
            longer = min(
                (tuple(sorted({*inside, d})) for d in set(range(num)) - set(inside)), key=lambda s: surface(A, s)
            )
            if surface(A, longer) >= surface(A, inside):
                break
            inside = longer
        large = [i for i, s in enumerate(subsets) if len(s) > 2]
        errors = [float(values[i] - surface(A, subsets[i])) for i in large]
        measured = int(values.argmin())
        found = inside if surface(A, inside) < values[measured] else subsets[measured]
        return found, {
            "predicted": surface(A, inside),
            "measured": float(values[measured]),
            "errors_of_large_subsets": errors,
        }


def all_subsets(num: int) -> list[Subset]:
    """All but the empty one, small ones first."""
    return [s for size in range(1, num + 1) for s in combinations(range(num), size)]


def some_subsets(num: int) -> list[Subset]:
    """Single domains, pairs, all but one, all."""
    sizes = sorted({1, 2, num - 1, num})
    return [s for size in sizes for s in combinations(range(num), size)]


def second_order(subsets: list[Subset], values: FloatArray, num: int) -> FloatArray:
    """The form `w' A w` (D, D), symmetric, that has the measured values at single domains and pairs."""
    at = dict(zip(subsets, values, strict=True))
    A = np.diag([at[(d,)] for d in range(num)])
    for j, k in combinations(range(num), 2):
        A[j, k] = A[k, j] = 2 * at[(j, k)] - (A[j, j] + A[k, k]) / 2
    return A


def surface(A: FloatArray, subset: Subset) -> float:
    """The form at the uniform average of a subset, nats."""
    return float(A[np.ix_(subset, subset)].mean())


def _uniform(subset: Subset, num: int) -> FloatArray:
    weights = np.zeros(num)
    weights[list(subset)] = 1 / len(subset)
    return weights
