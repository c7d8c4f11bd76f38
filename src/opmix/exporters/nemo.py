"""NeMo AutoModel: a Megatron blend, and the `domain_mixture` that names its domains."""

from __future__ import annotations

from typing import Any

from opmix.errors import ConfigError
from opmix.exporters.base import Export, assemble, check_unit, yaml_text
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit

_RESERVED = "weighted"


class NemoExporter:
    """`domain_mixture.domains` in the order of `dataset.paths`: `sampling_weight` says how often, `objective_weight` how much it counts.

    Both are the mixture's share, so no loss is re-weighted: the multiplier is their ratio. A scarce domain can be sampled less and
    counted as much by lowering its `sampling_weight` and its weight in `paths` alone.
    """

    name = "nemo"
    trainer = "NeMo AutoModel"
    unit: Unit = "sequences"
    suffix = ".yaml"
    limits = "two domains at least, none named `weighted`; no packing; repetition is not limited"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        if len(plan.names) < 2:
            raise ConfigError(f"{self.trainer}: {plan.names[0]!r} alone has a share; domain_mixture needs two domains")
        if _RESERVED in plan.names:
            raise ConfigError(f"domain {_RESERVED!r}: {self.trainer} keeps that name for itself; rename the domain")
        places, assumed = tokenised_paths(plan, "{domain}_text_document")
        weights = plan.shares
        content: dict[str, Any] = {
            "dataset": {"paths": [word for n, w in weights.items() for word in (f"{w:.9f}", places[n][0])]},
            "domain_mixture": {
                "domains": [{"name": n, "sampling_weight": w, "objective_weight": w} for n, w in weights.items()]
            },
        }
        keep = "both blocks belong into a pretraining recipe over MegatronPretraining data; other keys of dataset stay"
        return assemble(self, plan, weights, yaml_text(content), notes=(*assumed, keep))
