"""TRL: the `datasets` of a training YAML, with a `fraction` each."""

from __future__ import annotations

from typing import Any

from opmix.domain import RowSchema
from opmix.exporters.base import Export, assemble, check_unit, repetition_warning, yaml_text
from opmix.exporters.locations import TextLocation, held_out_warning, one_kind, relative_note, row_location
from opmix.exporters.plan import MixturePlan, Unit

_READS: tuple[RowSchema, ...] = ("text", "messages", "prompt and completion", "sharegpt")


class TrlExporter:
    """`DatasetMixtureConfig`: the first rows of each dataset, as many as keep the fractions without repeating any.

    One pass therefore uses up the domain with the most epochs; `num_train_epochs` makes passes add up to the budget.
    """

    name = "trl"
    trainer = "TRL"
    unit: Unit = "documents"
    suffix = ".yaml"
    limits = (
        "no domain is repeated by itself: a pass keeps the first rows of each, and whole passes are repeated; "
        "no streaming; one text column for all"
    )

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places = {d.name: row_location(d, self.trainer, reads=_READS) for d in plan.domains}
        one_kind(places, self.trainer)
        weights, epochs = plan.row_shares(), plan.epochs()
        entries = [_entry(places[name], fraction) for name, fraction in weights.items()]
        content: dict[str, Any] = {"datasets": entries}
        if epochs is not None:
            content["num_train_epochs"] = round(max(epochs.values()), 6)
        warnings = (
            *repetition_warning(plan, "TRL repeats the same first rows of every domain, not one domain alone"),
            *(f"{place.path} has a revision, which TRL cannot pin" for place in places.values() if place.revision),
            *held_out_warning(plan),
        )
        return assemble(
            self, plan, weights, yaml_text(content), warnings=warnings, notes=relative_note(places.values())
        )


def _entry(place: TextLocation, fraction: float) -> dict[str, Any]:
    arguments = {key: value for key, value in place.arguments().items() if key != "revision"}
    return {**arguments, "columns": place.columns, "fraction": fraction}
