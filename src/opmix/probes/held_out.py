"""Which held-out rows models are compared on."""

from __future__ import annotations

import numpy as np

from opmix.data import Rows, held_out_batch
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
            f"domain {name!r}: {len(rows)} held-out sequence(s) of {rows.sequence_length} tokens; expected at least 2: "
            "give it a "
            "larger valid set, a larger holdout or a shorter sequence_length"
        )
    indices = held_out_batch(rows, num, seed)
    chosen = [int(i) for i in indices]
    positions = labels = None
    if rows.conversations or document_mask:
        positions = pad_right([rows.position_ids(i) for i in chosen], "position_ids")
    if rows.conversations:
        labels = pad_right([rows.labels(i) for i in chosen], "labels")
    num_bytes = np.array([rows.num_bytes(i) for i in chosen])
    return HeldOut(name, rows.batch(indices), num_bytes, labels=labels, position_ids=positions)
