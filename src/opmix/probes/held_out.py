"""Which held-out rows models are compared on."""

from __future__ import annotations

import numpy as np

from opmix.data import Rows, held_out_batch
from opmix.data.choice import ChoiceRows
from opmix.data.rows import pad_right
from opmix.errors import DataError
from opmix.probes.evaluation import HeldOut


def held_out(name: str, rows: Rows, *, num: int, seed: int, document_mask: bool = False) -> HeldOut:
    """At most `num` rows of a split, the same for every model that is evaluated on them.

    Raises:
        DataError: Fewer than two: no noise can be estimated.
    """
    if len(rows) < 2:
        raise DataError(
            f"evaluation set {name!r}: {len(rows)} held-out sequence(s) of {rows.sequence_length} tokens; expected at "
            "least 2: give it a larger valid set, a larger holdout or a shorter sequence_length"
        )
    indices = held_out_batch(rows, num, seed)
    chosen = [int(i) for i in indices]
    if isinstance(rows, ChoiceRows):
        return _questions(name, rows, chosen)
    positions = labels = None
    if rows.conversations or document_mask:
        positions = pad_right([rows.position_ids(i) for i in chosen], "position_ids")
    if rows.conversations:
        labels = pad_right([rows.labels(i) for i in chosen], "labels")
    num_bytes = np.array([rows.num_bytes(i) for i in chosen])
    return HeldOut(name, rows.batch(indices), num_bytes, labels=labels, position_ids=positions)


def _questions(name: str, rows: ChoiceRows, chosen: list[int]) -> HeldOut:
    """Every option of the chosen questions as a sequence, the right one first; answers without alternatives as they are.

    Raises:
        DataError: Some questions have alternatives, others none.
    """
    options = [rows.options(i) for i in chosen]
    compared = rows.compared
    if compared and (alone := [i for i, question in zip(chosen, options, strict=True) if len(question) < 2]):
        raise DataError(
            f"evaluation set {name!r}: question {alone[0] + 1} has one option, others have several; expected at least "
            "two each; drop the row"
        )
    flat = [option for question in options for option in question]
    return HeldOut(
        name,
        pad_right([ids for ids, _ in flat], "input_ids"),
        np.full(len(chosen), np.nan) if compared else np.array([rows.num_bytes(i) for i in chosen]),
        labels=pad_right([labels for _, labels in flat], "labels"),
        questions=np.repeat(np.arange(len(chosen)), [len(q) for q in options]) if compared else None,
    )
