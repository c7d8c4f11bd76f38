"""OLMo-core: a `SourceMixtureList`, for a `SourceMixtureDatasetConfig`."""

from __future__ import annotations

import math
from typing import Any

from opmix.exporters.base import Export, assemble, check_unit, yaml_text
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit

_SLACK = 1.01
"""Times the epochs, because OLMo-core refuses a source that is short by one token."""


class OlmoCoreExporter:
    """`SourceMixtureList`: tokens, selected from each source up to its `max_repetition_ratio`."""

    name = "olmo-core"
    trainer = "OLMo-core"
    unit: Unit = "tokens"
    suffix = ".yaml"
    limits = "a source shorter than its part of `requested_tokens` times `max_repetition_ratio` is refused by OLMo-core"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places, assumed = tokenised_paths(plan, "{domain}/*.npy", raw=True)
        weights, epochs = plan.shares, plan.known_epochs()
        sources: list[dict[str, Any]] = []
        for name, ratio in weights.items():
            entry: dict[str, Any] = {"source_name": name, "target_ratio": ratio, "paths": places[name]}
            if epochs.get(name, 0.0) * _SLACK > 1:
                entry["max_repetition_ratio"] = math.ceil(epochs[name] * _SLACK * 1000) / 1000
            sources.append(entry)
        unknown = [name for name in plan.names if name not in epochs]
        unlimited = (
            f"sizes of {', '.join(unknown)} or the budget are not known, so max_repetition_ratio is left at 1 "
            "(no repetition); give --available and --tokens",
        )
        budget = () if plan.budget is None else (f"set requested_tokens to {plan.budget} beside this list",)
        return assemble(
            self,
            plan,
            weights,
            yaml_text({"sources": sources}),
            warnings=unlimited if unknown else (),
            notes=(*assumed, *budget),
        )
