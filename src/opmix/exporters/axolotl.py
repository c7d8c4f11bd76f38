"""axolotl: the `datasets` of a configuration, with a `weight` each (axolotl >= 0.21)."""

from __future__ import annotations

import os
from typing import Any

from opmix.domain import RowSchema
from opmix.exporters.base import REPEATED, Export, assemble, check_unit, yaml_text
from opmix.exporters.locations import TextLocation, held_out_warning, relative_note, row_location
from opmix.exporters.plan import MixturePlan, Unit

_ROWS: dict[RowSchema, dict[str, Any]] = {
    "messages": {"type": "chat_template", "field_messages": "messages"},
    "conversations": {"type": "chat_template", "field_messages": "conversations"},
    "sharegpt": {
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
    },
    "instruction and output": {"type": "alpaca"},
}
_READS: tuple[RowSchema, ...] = ("text", *_ROWS)
_FEW_ROWS = 100
"""Kept rows below which rounding to whole rows moves a domain's share by about one percent."""


class AxolotlExporter:
    """`weight` is the part of that dataset which is kept, in (0, 1]; the kept parts are concatenated.

    With `e_k` epochs wanted, `weight_k = e_k / max(1, max_j e_j)` and `num_epochs = max(1, max_j e_j)` give the
    shares and the budget. Without a budget only ratios of epochs matter, which sizes give.
    """

    name = "axolotl"
    trainer = "axolotl"
    unit: Unit = "documents"
    suffix = ".yaml"
    limits = (
        "a weight only takes away (at most 1): a domain is repeated only by repeating the whole pass; "
        "weights are ignored when streaming"
    )

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places = {d.name: row_location(d, self.trainer, reads=_READS) for d in plan.domains}
        sizes = plan.available()
        density = {d.name: d.share / sizes[d.name] for d in plan.domains}
        passes = max(density.values()) * plan.budget if plan.budget is not None else 1.0
        # Below one pass the weights themselves end at the budget; num_epochs stays 1.
        scale = plan.budget / max(1.0, passes) if plan.budget is not None else 1 / max(density.values())
        weights = {name: min(1.0, max(1e-9, round(value * scale, 9))) for name, value in density.items()}
        warnings = (*_reuse(weights, passes), *_few(plan, weights), *held_out_warning(plan))
        content: dict[str, Any] = {
            "datasets": [_entry(places[name], weight) for name, weight in weights.items()],
            "shuffle_merged_datasets": True,
            "num_epochs": round(max(1.0, passes), 6),
        }
        return assemble(
            self,
            plan,
            weights,
            yaml_text(content),
            meaning="the part of the dataset's documents that is kept",
            warnings=warnings,
            notes=relative_note(places.values()),
        )


def _entry(place: TextLocation, weight: float) -> dict[str, Any]:
    # axolotl reads one file by its path, several as `data_files` of an existing folder.
    if place.is_hub:
        where = {"path": place.path, **{k: v for k in ("name", "revision") if (v := getattr(place, k))}}
    elif len(place.data_files) == 1 and not set("*?[") & set(place.data_files[0]):
        where = {"path": place.data_files[0], "ds_type": place.path}
    else:
        where = {"path": _folder(place), "data_files": list(place.data_files), "ds_type": place.path}
    rows = _ROWS.get(place.rows, {"type": "completion", "field": place.field})
    return {**where, "split": place.split, **rows, "weight": weight}


def _folder(place: TextLocation) -> str:
    plain = [file.split("*")[0].split("?")[0].split("[")[0] for file in place.data_files]
    return os.path.commonpath([os.path.dirname(file) or "." for file in plain])  # noqa: PTH120 (of patterns)


def _reuse(weights: dict[str, float], passes: float) -> tuple[str, ...]:
    cut = [f"{name} ({weight:.3g})" for name, weight in weights.items() if weight < 1]
    if passes <= REPEATED or not cut:
        return ()
    return (
        f"the budget needs {passes:.3g} passes: the kept part of {', '.join(cut)} is repeated "
        "where unseen documents are left, because axolotl cannot repeat one domain alone",
    )


def _few(plan: MixturePlan, weights: dict[str, float]) -> tuple[str, ...]:
    rows = {d.name: d.tokens / d.row_tokens for d in plan.domains if d.tokens and d.row_tokens}
    few = [f"{name} ({weights[name] * n:.0f})" for name, n in rows.items() if weights[name] * n < _FEW_ROWS]
    if not few:
        return ()
    return (f"few documents are kept of {', '.join(few)}: whole documents, so their share is rough",)
