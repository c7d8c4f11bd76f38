"""Megatron-LM: the weighted blend of `--data-path`, as a Bash array."""

from __future__ import annotations

import shlex

from opmix.exporters.base import Export, assemble, check_unit
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit


class MegatronExporter:
    """`--data-path WEIGHT PREFIX ...`: sequences of equal length, by largest sampling error; domains are repeated.

    The file that `--data-args-path` reads can hold no comment, so this is the array that Megatron's own launch
    scripts use: `source FILE`, then `pretrain_gpt.py "${DATA_ARGS[@]}"`.
    """

    name = "megatron"
    trainer = "Megatron-LM"
    unit: Unit = "sequences"
    suffix = ".sh"
    limits = "nothing of a static mixture; repetition is not limited"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places, assumed = tokenised_paths(plan, "{domain}_text_document")
        weights = plan.shares
        pairs = "".join(f"  {weight:.9f} {shlex.quote(places[name][0])}\n" for name, weight in weights.items())
        return assemble(self, plan, weights, f"DATA_ARGS=(\n  --data-path\n{pairs})\n", notes=assumed)
