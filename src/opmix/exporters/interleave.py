"""Hugging Face `datasets`: a module with `build()`, made of `load_dataset` and `interleave_datasets`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from opmix.domain import RowSchema
from opmix.exporters.base import Export, assemble, check_unit, python_literal
from opmix.exporters.locations import held_out_warning, one_kind, relative_note, row_location
from opmix.exporters.plan import MixturePlan, Unit

_BODY = '''
from datasets import concatenate_datasets, interleave_datasets, load_dataset

SOURCES = {sources}
FIELDS = {fields}
PROBABILITIES = {weights}
EPOCHS = {epochs}  # rounded up; each in its own order
ROWS = {rows}  # in the budget; None: until every domain is used up


def build(seed={seed}, streaming=False):
    """The mixture as one dataset with {columns}."""
    parts = []
    for name, arguments in SOURCES.items():
        part = load_dataset(**arguments, streaming=streaming).select_columns(FIELDS[name])
        if FIELDS[name] != {wanted}:
            part = part.rename_columns(dict(zip(FIELDS[name], {wanted})))
        parts.append(concatenate_datasets([part.shuffle(seed=seed + epoch) for epoch in range(EPOCHS[name])]))
    mixed = interleave_datasets(
        parts, probabilities=list(PROBABILITIES.values()), seed=seed, stopping_strategy={strategy!r}
    )
    # Not every datasets takes more rows than there are.
    return mixed if ROWS is None or (not streaming and len(mixed) <= ROWS) else mixed.take(ROWS)
'''


class InterleaveExporter:
    """`datasets.interleave_datasets(probabilities=...)`: each row is drawn from a domain at random."""

    name = "interleave"
    trainer = "Hugging Face datasets"
    unit: Unit = "documents"
    suffix = ".py"
    limits = "draws are random, so short stretches deviate"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        places = {
            d.name: row_location(d, self.trainer, whole_files=True, reads=get_args(RowSchema)) for d in plan.domains
        }
        texts = all(place.rows == "text" for place in places.values())
        wanted = ["text"] if texts else one_kind(places, self.trainer)
        weights, epochs = plan.row_shares(), plan.epochs()
        # With epochs known no domain runs out inside the budget; otherwise all are repeated until the last has.
        rows = plan.rows() if epochs is not None else None
        body = _BODY.format(
            sources=python_literal({name: place.arguments() for name, place in places.items()}),
            fields=python_literal({name: place.columns for name, place in places.items()}),
            columns=" and ".join(f"`{c}`" for c in wanted),
            wanted=wanted,
            weights=python_literal(weights),
            rows=rows,
            seed=plan.seed,
            epochs=python_literal(dict.fromkeys(weights, 1) if epochs is None else _whole(plan, epochs, weights)),
            strategy="all_exhausted" if epochs is None else "first_exhausted",
        )
        return assemble(
            self, plan, weights, body, warnings=held_out_warning(plan), notes=relative_note(places.values())
        )


def _whole(plan: MixturePlan, epochs: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, int]:
    """Epochs that suffice although the number of rows drawn is random: one percent and five standard deviations more."""
    rows = plan.rows() or 1
    return {n: math.ceil(seen * (1.01 + 5 / math.sqrt(max(weights[n] * rows, 1.0)))) for n, seen in epochs.items()}
