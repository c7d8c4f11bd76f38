"""TRL: the `datasets` of a training YAML, with a `fraction` each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix.errors import ConfigError
from opmix.exporters.base import Export, assemble, check_unit, repetition_warning, yaml_text
from opmix.exporters.locations import TextLocation, held_out_warning, relative_note, text_location
from opmix.exporters.plan import MixturePlan, Unit


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
        places = {d.name: text_location(d, self.trainer) for d in plan.domains}
        _one_column(places, self.trainer)
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
    return {**arguments, "columns": [place.field], "fraction": fraction}


def _one_column(places: Mapping[str, TextLocation], trainer: str) -> None:
    fields = {place.field for place in places.values()}
    if len(fields) > 1:
        raise ConfigError(
            f"{trainer} concatenates datasets by column, and the domains' text is in {', '.join(sorted(fields))}; "
            "expected one column; rename them, or export to interleave"
        )
