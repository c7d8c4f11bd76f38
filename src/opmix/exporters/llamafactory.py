"""LLaMA-Factory: the data keys of a training YAML, and `dataset_info.json` which its `dataset` names refer to."""

from __future__ import annotations

import json
from typing import Any

from opmix.domain import RowSchema
from opmix.errors import ConfigError, DataError
from opmix.exporters.base import REPEATED, Export, assemble, check_unit, repetition_warning, yaml_text
from opmix.exporters.locations import TextLocation, held_out_warning, row_location
from opmix.exporters.plan import MixturePlan, Unit

INFO = "dataset_info.json"
_ROLES = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_ROWS: dict[RowSchema, dict[str, Any]] = {
    "messages": {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _ROLES},
    "conversations": {"formatting": "sharegpt", "columns": {"messages": "conversations"}, "tags": _ROLES},
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "prompt and completion": {"columns": {"prompt": "prompt", "response": "completion"}},
    "instruction and output": {"columns": {"prompt": "instruction", "query": "input", "response": "output"}},
}
_READS: tuple[RowSchema, ...] = ("text", *_ROWS)


class LlamaFactoryExporter:
    """`mix_strategy: interleave_*` with `interleave_probs`: each row is drawn from a domain at random.

    A pass of `interleave_under` ends when the first domain does, of `interleave_over` when the last does;
    `num_train_epochs` is the passes in the budget.
    """

    name = "llamafactory"
    trainer = "LLaMA-Factory"
    unit: Unit = "documents"
    suffix = ".yaml"
    limits = (
        "draws are random; a domain is one file or one folder of files of one kind, or a hub name; nothing compressed"
    )

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        info = dataset_info(plan, self.trainer)
        weights, epochs = plan.row_shares(), plan.epochs()
        once = epochs is not None and max(epochs.values()) <= REPEATED
        content: dict[str, Any] = {
            "dataset_dir": ".",
            "dataset": ",".join(plan.names),
            "mix_strategy": "interleave_under" if once else "interleave_over",
            "interleave_probs": ",".join(f"{weight:.9f}" for weight in weights.values()),
        }
        if epochs is not None:
            content["num_train_epochs"] = round((max if once else min)(epochs.values()), 6)
        warnings = (
            *repetition_warning(plan, "its documents come in the same order each time"),
            *held_out_warning(plan),
        )
        return assemble(
            self,
            plan,
            weights,
            yaml_text(content),
            warnings=warnings,
            notes=[f"dataset_dir must be the folder of {INFO}, and relative file names there start from it"],
            companions={INFO: info},
        )


def dataset_info(plan: MixturePlan, trainer: str) -> str:
    """The text of `dataset_info.json`, which LLaMA-Factory and what is built on it (DataFlex) share.

    Raises:
        ConfigError: Texts and conversations in one mixture, or a comma in a name.
        DataError: A source that cannot be read.
    """
    if plan.chats and len(plan.chats) < len(plan.names):
        raise ConfigError(
            f"{trainer} trains on texts (stage pt) or on conversations (stage sft), and {plan.chats[0]!r} alone holds "
            "conversations; expected one kind; convert the others"
        )
    commas = [name for name in plan.names if "," in name]
    if commas:
        raise ConfigError(f"domain {commas[0]!r}: {trainer} separates names by commas; rename the domain")
    places = {d.name: row_location(d, trainer, reads=_READS) for d in plan.domains}
    info = {name: _info(name, place, trainer) for name, place in places.items()}
    return json.dumps(info, indent=2, ensure_ascii=False) + "\n"


def _info(name: str, place: TextLocation, trainer: str) -> dict[str, Any]:
    columns = _ROWS.get(place.rows, {"columns": {"prompt": place.field}})
    if place.is_hub:
        return {
            "hf_hub_url": place.path,
            **({"subset": place.name} if place.name else {}),
            "split": place.split,
            **columns,
        }
    first = place.data_files[0]
    folder, _, rest = first.partition("/**/")
    whole_folder = rest.startswith("*") and not set("*?[") & set(folder)
    readable = whole_folder or (not set("*?[") & set(first) and first.endswith((".json", ".jsonl", ".parquet")))
    if len(place.data_files) > 1 or not readable or first.endswith((".gz", ".zst")):
        raise DataError(
            f"domain {name!r}: {', '.join(place.data_files)}; {trainer} reads one .json, .jsonl or .parquet file, or a "
            f"folder with nothing else in it; give --path {name}=FILE_OR_FOLDER"
        )
    return {"file_name": folder if whole_folder else first, **columns}
