"""A mixture into somebody's training YAML: only the numbers change, every comment and line around them stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from opmix.errors import ConfigError
from opmix.exporters import ExportOptions, export_run
from opmix.runs.files import write_text
from opmix.scaffold.trainer_yaml import TrainerFile, read_trainer

Edit = tuple[int, int, str]
"""From and to which character, and what stands there then."""


def write_back(run: Path, into: Path, options: ExportOptions | None = None) -> tuple[TrainerFile, tuple[str, ...]]:
    """Write a run's mixture into an axolotl or LLaMA-Factory YAML that `opmix init --from` made the search of.

    Datasets without a share are commented out (axolotl) or no longer named (LLaMA-Factory). Returns the file as it was, and the
    export's warnings.

    Raises:
        ConfigError: Its datasets are not the run's domains, or what `export_run` refuses.
        DataError: It cannot be read.
    """
    found = read_trainer(into)
    made = export_run(run, found.trainer, options)
    shares = dict(made.weights)
    names = {each.name: each.label for each in found.data}
    if missing := [name for name in shares if name not in names]:
        raise ConfigError(
            f"{into}: no dataset for domain {missing[0]!r} of the run; it has {', '.join(names)}; expected the file "
            "that `opmix init --from` was given"
        )
    text = into.read_text(encoding="utf-8")
    exported = yaml.safe_load(made.text)
    tree: Any = yaml.compose(text)
    edits = _axolotl(text, tree, found, shares) if found.trainer == "axolotl" else []
    top = {key: exported[key] for key in ("mix_strategy", "interleave_probs", "num_train_epochs") if key in exported}
    if found.trainer == "axolotl":
        top = {key: exported[key] for key in ("shuffle_merged_datasets", "num_epochs") if key in exported}
    else:
        top["dataset"] = ",".join(names[name] for name in shares)
    edits += _settings(text, tree, top)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    _check(text, found, shares, top)
    write_text(into, text)
    return found, made.warnings


def _axolotl(text: str, tree: Any, found: TrainerFile, shares: Mapping[str, float]) -> list[Edit]:
    entries = _value(tree, "datasets").value
    edits: list[Edit] = []
    for each, node in zip(found.data, entries, strict=True):
        if each.name in shares:
            edits += _settings(text, node, {"weight": shares[each.name]})
            continue
        start, end = node.start_mark.index, node.end_mark.index
        start = text.rfind("\n", 0, start) + 1
        lines = text[start:end].rstrip().splitlines(keepends=True)
        if node.flow_style and text[start : node.start_mark.index].strip() != "-":
            raise ConfigError(f"{found.path}: {each.label} has no share; take it out of datasets, and write again")
        edits.append(
            (
                start,
                start + sum(map(len, lines)),
                "".join(f"# {line}" for line in ["no share: " + lines[0].lstrip(), *lines[1:]]),
            )
        )
    return edits


def _settings(text: str, node: Any, values: Mapping[str, Any]) -> list[Edit]:
    """Set keys of a mapping: where one stands its value alone is replaced, else a line is added below the last key."""
    edits: list[Edit] = []
    for key, value in values.items():
        new = yaml.safe_dump(value, default_flow_style=True, width=2**20).removesuffix("\n...\n").strip()
        old = _value(node, key)
        if old is not None:
            edits.append((old.start_mark.index, old.end_mark.index, new))
        elif node.flow_style:
            edits.append((node.end_mark.index - 1, node.end_mark.index - 1, f", {key}: {new}"))
        else:
            column = node.value[0][0].start_mark.column
            end = node.value[-1][1].end_mark.index
            stop = len(text[:end].rstrip())
            line = text.find("\n", stop)
            line = len(text) if line < 0 else line
            edits.append((line, line, f"\n{' ' * column}{key}: {new}"))
    return edits


def _value(node: Any, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _check(text: str, found: TrainerFile, shares: Mapping[str, float], top: Mapping[str, Any]) -> None:
    """What was written reads back as what was meant; else nothing is written."""
    content = yaml.safe_load(text)
    if found.trainer == "axolotl":
        labels = {each.label: each.name for each in found.data}
        told = {labels[entry["path"]]: entry["weight"] for entry in content["datasets"]}
        right = told == dict(shares)
    else:
        right = True
    others = {k: v for k, v in found.content.items() if k not in (*top, "datasets")}
    if not right or any(content.get(k) != v for k, v in {**others, **top}.items()):
        raise ConfigError(
            f"{found.path}: laid out in a way that cannot be changed in place; `opmix export --to {found.trainer}` "
            "prints the block to put there"
        )
