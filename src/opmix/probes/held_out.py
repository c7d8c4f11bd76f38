"""Which held-out sequences models are compared on."""

from __future__ import annotations

import numpy as np

from opmix.data import PackedSequences, held_out_batch
from opmix.errors import DataError
from opmix.probes.evaluation import HeldOut


def held_out(name: str, packed: PackedSequences, *, num: int, seed: int, document_mask: bool = False) -> HeldOut:
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
    positions = np.stack([packed.position_ids(int(i)) for i in rows]) if document_mask else None
    return HeldOut(name, packed.batch(rows), np.array([packed.num_bytes(int(i)) for i in rows]), position_ids=positions)
