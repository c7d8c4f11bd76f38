"""nanotron: one entry of `data_stages`."""

from __future__ import annotations

from opmix.exporters.base import Export, assemble, check_unit, yaml_text
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit


class NanotronExporter:
    """`NanosetDatasetsArgs` with `dataset_weights`: sequences; domains are repeated."""

    name = "nanotron"
    trainer = "nanotron"
    unit: Unit = "sequences"
    suffix = ".yaml"
    limits = "nothing of a static mixture, given nanosets; a later stage needs its own start_training_step"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places, assumed = tokenised_paths(plan, "{domain}")
        weights = plan.shares
        dataset = {
            "dataset_folder": [places[name][0] for name in plan.names],
            "dataset_weights": list(weights.values()),
        }
        stage = {
            "name": "opmix mixture",
            "start_training_step": 1,
            "data": {"dataset": dataset, "num_loading_workers": 1, "seed": plan.seed},
        }
        notes = (*assumed, "for a later stage set start_training_step to the step that it begins at")
        return assemble(self, plan, weights, yaml_text({"data_stages": [stage]}), notes=notes)
