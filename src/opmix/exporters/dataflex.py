"""DataFlex: LLaMA-Factory's data keys with a static mixture, and the components file that holds its shares."""

from __future__ import annotations

from typing import Any

from opmix.exporters.base import Export, assemble, check_unit, yaml_text
from opmix.exporters.llamafactory import INFO, dataset_info
from opmix.exporters.locations import held_out_warning
from opmix.exporters.plan import MixturePlan, Unit

_COMPONENTS = "dataflex_components.yaml"


class DataFlexExporter:
    """`train_type: dynamic_mix` with the mixer `static`: rows are drawn by fixed proportions, in the order of `dataset`.

    Read in DataFlex's documentation (OpenDCAI/DataFlex-Doc, mixer pages): proportions stand in the training YAML and, for the mixer,
    in the components file.
    """

    name = "dataflex"
    trainer = "DataFlex"
    unit: Unit = "documents"
    suffix = ".yaml"
    limits = "draws are random; domains as for llamafactory; the length of training is set by max_steps, not by data"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        info = dataset_info(plan, self.trainer)
        weights, rows = plan.row_shares(), plan.rows()
        proportions = list(weights.values())
        content: dict[str, Any] = {
            "dataset_dir": ".",
            "dataset": ",".join(plan.names),
            "train_type": "dynamic_mix",
            "components_cfg_file": _COMPONENTS,
            "component_name": "static",
            "mixture_sample_rule": "mixture",
            "init_mixture_proportions": proportions,
            "static_mix": True,
        }
        components = {"mixers": {"static": {"name": "static", "params": {"proportions": proportions}}}}
        notes = [f"dataset_dir must be the folder of {INFO}, and relative file names there start from it"]
        if rows is not None:
            notes.append(f"the budget is about {rows} rows: set max_steps to that over the rows of a step")
        return assemble(
            self,
            plan,
            weights,
            yaml_text(content),
            warnings=held_out_warning(plan),
            notes=notes,
            companions={INFO: info, _COMPONENTS: yaml_text(components)},
        )
