"""ms-swift: the data arguments of `swift pt` and `swift sft`, as a Bash array (ms-swift >= 3.8)."""

from __future__ import annotations

import json
import shlex

from opmix.domain import RowSchema
from opmix.errors import ConfigError, DataError
from opmix.exporters.base import REPEATED, Export, assemble, check_unit, repetition_warning
from opmix.exporters.locations import TextLocation, held_out_warning, relative_note, row_location
from opmix.exporters.plan import MixturePlan, Unit

_READS: tuple[RowSchema, ...] = ("text", "messages", "conversations", "sharegpt")
_FILES = (".json", ".jsonl", ".parquet")


class MsSwiftExporter:
    """`--interleave_prob` beside `--dataset`: each row is drawn from a domain at random, as `datasets.interleave_datasets` does.

    `source FILE`, then `swift pt "${SWIFT_ARGS[@]}" --model ...` (texts) or `swift sft` (conversations).
    """

    name = "ms-swift"
    trainer = "ms-swift"
    unit: Unit = "documents"
    suffix = ".sh"
    limits = (
        "draws are random; a domain is one file or a hub name whose path holds no # and no colon; nothing compressed"
    )

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        if plan.chats and len(plan.chats) < len(plan.names):
            raise ConfigError(
                f"{self.trainer} trains on texts (swift pt) or on conversations (swift sft), and {plan.chats[0]!r} "
                "alone holds conversations; expected one kind; convert the others"
            )
        places = {d.name: row_location(d, self.trainer, reads=_READS) for d in plan.domains}
        weights, epochs = plan.row_shares(), plan.epochs()
        once = epochs is not None and max(epochs.values()) <= REPEATED
        words = ["--dataset", *(_dataset(name, place, self.trainer) for name, place in places.items())]
        words += ["--interleave_prob", *(f"{weight:.9f}" for weight in weights.values())]
        words += ["--stopping_strategy", "first_exhausted" if once else "all_exhausted"]
        if columns := {place.field: "response" for place in places.values() if place.rows == "text"}:
            words += ["--columns", json.dumps(columns, ensure_ascii=False)]
        if epochs is not None:
            words += ["--num_train_epochs", f"{(max if once else min)(epochs.values()):.6g}"]
        if any(place.is_hub for place in places.values()):
            words += ["--use_hf", "true"]
        body = "SWIFT_ARGS=(\n" + "".join(f"  {shlex.quote(word)}\n" for word in words) + ")\n"
        warnings = (
            *repetition_warning(plan, "its documents come in the same order each time"),
            *(f"{place.path} has a revision, which ms-swift cannot pin" for place in places.values() if place.revision),
            *held_out_warning(plan),
        )
        return assemble(self, plan, weights, body, warnings=warnings, notes=relative_note(places.values()))


def _dataset(name: str, place: TextLocation, trainer: str) -> str:
    """One entry of `--dataset`, in whose language `#` and `:` mean something."""
    if place.is_hub:
        if place.split != "train":
            raise DataError(f"domain {name!r}: split {place.split!r} of {place.path}; {trainer} reads the split train")
        return f"HF::{place.path}" + (f":{place.name}" if place.name else "")
    first = place.data_files[0]
    readable = first.endswith(_FILES) and not set("*?[#:") & set(first)
    if len(place.data_files) > 1 or not readable:
        raise DataError(
            f"domain {name!r}: {', '.join(place.data_files)}; {trainer} reads one .json, .jsonl or .parquet file whose "
            f"path holds no #, colon or wildcard; give --path {name}=FILE"
        )
    return first
