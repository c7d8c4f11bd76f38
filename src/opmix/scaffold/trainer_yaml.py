"""What an axolotl or LLaMA-Factory YAML says of model, adapters and data; `opmix init --from` makes a search of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from opmix.config import SearchConfig, parse_config
from opmix.domain import user_path
from opmix.errors import ConfigError, DataError
from opmix.runs.files import write_text
from opmix.scaffold.layout import domain_names
from opmix.settings import number

Trainer = Literal["axolotl", "llamafactory"]
_TRAINING: dict[Trainer, dict[str, str]] = {
    "axolotl": {
        "learning_rate": "learning_rate",
        "micro_batch_size": "per_device_train_batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "weight_decay": "weight_decay",
    },
    "llamafactory": {
        "learning_rate": "learning_rate",
        "per_device_train_batch_size": "per_device_train_batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "weight_decay": "weight_decay",
    },
}
_PROBES: dict[Trainer, dict[str, str]] = {
    "axolotl": {"lora_r": "rank", "lora_alpha": "alpha", "peft_use_rslora": "rslora"},
    "llamafactory": {"lora_rank": "rank", "lora_alpha": "alpha", "use_rslora": "rslora"},
}
_MODEL: dict[Trainer, str] = {"axolotl": "base_model", "llamafactory": "model_name_or_path"}
_LENGTH: dict[Trainer, str] = {"axolotl": "sequence_len", "llamafactory": "cutoff_len"}
_OWN_ADAPTER: dict[Trainer, str] = {"axolotl": "lora_model_dir", "llamafactory": "adapter_name_or_path"}
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".arrow")
_FORMATS = {"json": "jsonl", "parquet": "parquet", "text": "text", "arrow": "arrow"}


@dataclass(frozen=True, kw_only=True)
class TrainerData:
    """One dataset of a trainer's YAML."""

    name: str
    """As a domain."""
    label: str
    """As the file names it: a path, a hub name, or a key of `dataset_info.json`."""
    train: Mapping[str, Any]
    """As `train` of a domain in `search.yaml`."""
    chat: bool


@dataclass(frozen=True, kw_only=True)
class TrainerFile:
    """A training YAML of somebody's."""

    path: Path
    trainer: Trainer
    content: Mapping[str, Any]
    data: tuple[TrainerData, ...]

    def search(self, tokens: float | None, model: str | None = None) -> dict[str, Any]:
        """The content of a `search.yaml` with the same model, adapters, lengths and data.

        Raises:
            ConfigError: No number of tokens: these files count epochs.
        """
        if tokens is None:
            raise ConfigError("--tokens: missing; a trainer's YAML counts epochs: give the tokens of the training, 2e9")
        said, kind = self.content, self.trainer
        made: dict[str, Any] = {"model": model or said[_MODEL[kind]], "domains": {}, "budget": {"tokens": int(tokens)}}
        for each in self.data:
            made["domains"][each.name] = {"train": dict(each.train), **({"kind": "chat"} if each.chat else {})}
        if _LENGTH[kind] in said:
            made["sequence_length"] = said[_LENGTH[kind]]
        if all(each.chat for each in self.data):
            made["objective"] = "sft"
        given = {ours: number(said[theirs]) for theirs, ours in _TRAINING[kind].items() if said.get(theirs) is not None}
        made |= {"trainer": given} if given else {}
        probes = {ours: said[theirs] for theirs, ours in _PROBES[kind].items() if said.get(theirs) is not None}
        targets = said.get("lora_target_modules" if kind == "axolotl" else "lora_target")
        targets = [t.strip() for t in targets.split(",")] if isinstance(targets, str) else targets
        if targets and targets != ["all"] and not said.get("lora_target_linear"):
            probes["target_modules"] = list(targets)
        return made | ({"probes": probes} if probes else {})

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file a search does not take over."""
        told = []
        if adapter := self.content.get(_OWN_ADAPTER[self.trainer]):
            told.append(
                f"the adapter {adapter} is not in the search: merge it into the model, or pass both to opmix.search"
            )
        if self.content.get("load_in_4bit") or self.content.get("quantization_bit"):
            told.append("the search loads the model unquantised")
        return tuple(told)


def read_trainer(path: Path) -> TrainerFile:
    """Read a training YAML; relative paths start from the working folder, as the trainers' do, else from the file's.

    Raises:
        ConfigError: Neither axolotl's nor LLaMA-Factory's, or fewer than two datasets.
        DataError: It cannot be read, or names data that cannot be searched.
    """
    try:
        content = yaml.safe_load(user_path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({error}); expected a training file") from error
    readers: dict[Trainer, Callable[[dict[str, Any], Path], Iterator[tuple[str, dict[str, Any], bool]]]] = {
        "axolotl": _axolotl,
        "llamafactory": _llamafactory,
    }
    kind = next((k for k in readers if isinstance(content, dict) and _MODEL[k] in content), None)
    if kind is None:
        raise ConfigError(f"{path}: neither base_model (axolotl) nor model_name_or_path (LLaMA-Factory); which is it?")
    found = list(readers[kind](content, path))
    if len(found) < 2:
        raise ConfigError(f"{path}: {len(found)} dataset(s); a mixture needs at least two")
    if len({label for label, _, _ in found}) < len(found):
        raise ConfigError(f"{path}: a dataset stands twice; opmix finds the share of each: name it once")
    names = domain_names(Path(label).name.split(".")[0] if "/" in label else label for label, _, _ in found)
    if len(names) < len(found):  # files of the same name in several folders
        names = domain_names(label for label, _, _ in found)
        keys = [label for label, _, _ in found]
    else:
        keys = list(names)
    data = [
        TrainerData(name=names[key], label=label, train=train, chat=chat)
        for key, (label, train, chat) in zip(keys, found, strict=True)
    ]
    return TrainerFile(path=path, trainer=kind, content=content, data=tuple(data))


def search_from_trainer(
    path: Path, out: Path, *, tokens: float | None, model: str | None = None, force: bool = False
) -> tuple[SearchConfig, TrainerFile]:
    """Write the `search.yaml` of a training YAML.

    Raises:
        ConfigError: As `read_trainer`, or `out` exists.
        DataError: As `read_trainer`.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already; expected a new file; give --force to replace it, or another --out")
    found = read_trainer(path)
    content = found.search(tokens, model)
    config = parse_config(content, where=str(path))
    for domain in content["domains"].values():
        if domain["train"].get("format") != "hub":
            here = out.parent.resolve()
            domain["train"]["paths"] = [os.path.relpath(p, here) for p in domain["train"]["paths"]]
    text = f"# Written by `opmix init --from` for a file of {found.trainer}'s; paths are relative to this file.\n"
    text += "# Then: opmix validate, opmix search, opmix export RUN --into YOUR_FILE. Every key: docs/search.md.\n"
    write_text(out, text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=2**20))
    return config, found


def _axolotl(content: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any], bool]]:
    for index, entry in enumerate(content.get("datasets") or []):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise DataError(f"{path}: datasets[{index}]: no path; expected a mapping with path and type")
        kind = str(entry.get("type", ""))
        chat = kind.startswith(("chat_template", "alpaca", "sharegpt"))
        if not chat and kind not in ("completion", "pretraining"):
            raise DataError(
                f"{path}: datasets[{index}].type: {kind!r}; opmix reads completion, chat_template and alpaca"
            )
        files = entry.get("data_files")
        files = [files] if isinstance(files, str) else files
        local = False if "ds_type" in entry or Path(entry["path"]).suffix in _SUFFIXES else None
        yield entry["path"], _train(entry["path"], entry, path, files=files, text=not chat, hub=local), chat


def _llamafactory(content: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any], bool]]:
    folder = _found(str(content.get("dataset_dir", "data")), path)
    named = content.get("dataset") or ""
    names = [n.strip() for n in named.split(",") if n.strip()] if isinstance(named, str) else list(named)
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}/dataset_info.json: cannot be read ({error}); dataset_dir should hold it") from error
    for name in names:
        if name not in info:
            raise DataError(f"{folder}/dataset_info.json: no dataset {name!r}, which {path} names")
        entry = info[name]
        chat = content.get("stage", "sft") != "pt"
        place = entry.get("hf_hub_url") or str(folder / entry.get("file_name", name))
        options = {
            "name": entry.get("subset"),
            "split": entry.get("split"),
            "field": entry.get("columns", {}).get("prompt"),
        }
        hub = "hf_hub_url" in entry
        yield name, _train(place, options, path, files=None, text=not chat, hub=hub), chat


def _train(
    place: str, entry: Mapping[str, Any], path: Path, *, files: list[str] | None, text: bool, hub: bool | None = None
) -> dict[str, Any]:
    """A source in opmix' words."""
    at = None if hub else _found(place, path, needed=hub is False)
    if at is None:
        made: dict[str, Any] = {"paths": [place], "format": "hub"}
        made |= {ours: entry[key] for key, ours in (("name", "config_name"), ("split", "split")) if entry.get(key)}
    else:
        made = {"paths": [str(at / name) for name in files] if files else [str(at)]}
        if (kind := _FORMATS.get(str(entry.get("ds_type")))) is not None:
            made["format"] = kind
    if text and entry.get("field") not in (None, "text"):
        made["field"] = entry["field"]
    return made


def _found(place: str, path: Path, *, needed: bool = True) -> Any:
    """A file or folder from the working folder, else from the YAML's; None: a name on the hub."""
    for base in (Path.cwd(), path.resolve().parent):
        if (at := base / place).exists():
            return at.resolve()
    if needed or place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise DataError(f"{path}: {place}: neither here nor beside the file; start opmix where the trainer is started")
    return None
