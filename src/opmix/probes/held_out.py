"""Which held-out sequences models are compared on."""

from __future__ import annotations

import numpy as np

from opmix.data import Rows, held_out_batch
from opmix.data.rows import pad_right
from opmix.errors import DataError
from opmix.probes.evaluation import HeldOut


def held_out(name: str, packed: Rows, *, num: int, seed: int, document_mask: bool = False) -> HeldOut:
    """At most `num` sequences of a split, the same for every model that is evaluated on them.

    Raises:
        DataError: Fewer than two sequences: no noise can be estimated.
    """
    if len(packed) < 2:
        raise DataError(
            f"domain {name!r}: {len(packed)} held-out sequence(s) of {packed.sequence_length} tokens; expected at least 2: give it a "
            "larger valid set, a larger holdout or a shorter sequence_length"
        )
    rows = held_out_batch(packed, num, seed)
    chosen = [int(i) for i in rows]
    positions = labels = None
    if packed.conversations or document_mask:
        positions = pad_right([packed.position_ids(i) for i in chosen], "position_ids")
    if packed.conversations:
        labels = pad_right([packed.labels(i) for i in chosen], "labels")
    num_bytes = np.array([packed.num_bytes(i) for i in chosen])
    return HeldOut(name, packed.batch(rows), num_bytes, labels=labels, position_ids=positions)
