"""`opmix init`: a sub-folder `targets` of the data, and what `--target` names, as targets of the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opmix.data.choice import target_kind
from opmix.data.inspect.samples import read_rows
from opmix.data.inspect.schema import schema_of
from opmix.data.sources import format_of
from opmix.domain import Domain, Kind, Source, Split
from opmix.errors import DataError
from opmix.scaffold.layout import Found, domain_names, find_domains, flat_name

FOLDER = "targets"


@dataclass
class TargetDraft:
    """A target as it will stand in the configuration."""

    name: str
    sources: dict[Split, Source] = field(default_factory=dict)
    """`valid`, and `test` where there is one."""
    kind: Kind = "text"


def find_targets(places: Sequence[str | Path], given: Sequence[Path], taken: Sequence[str]) -> list[TargetDraft]:
    """Targets of a folder of data, and those that were named.

    Args:
        places: Of the data; every file or sub-folder of a folder's `targets` is one, as domains are.
        given: Files, or folders that are one target each.
        taken: Names of domains.

    Raises:
        DataError: One of them cannot be read.
    """
    folders = [Path(os.path.abspath(place)) / FOLDER for place in places]  # noqa: PTH100 (as below)
    found = [each for folder in folders if folder.is_dir() for each in find_domains(folder)]
    found += [_one(Path(os.path.abspath(path))) for path in given]  # noqa: PTH100 (`resolve` would follow links)
    names = domain_names([*taken, *(f"target {each.label}" if each.label in taken else each.label for each in found)])
    free = list(names.values())[len(taken) :]
    return [_draft(each, name) for each, name in zip(found, free, strict=True)]


def _one(path: Path) -> Found:
    if path.is_dir():
        inside = find_domains(path)
        if len(inside) == 1:
            return inside[0]
        merged = Found(path.name)
        for each in inside:
            for split, files in each.files.items():
                merged.files.setdefault(split, []).extend(files)
        return merged
    if not path.is_file():
        raise DataError(f"--target: {path}: no such file or folder; expected text that the mixture is for")
    return Found(flat_name(path)[0] or path.stem, {"valid": [path]})


def _draft(found: Found, name: str) -> TargetDraft:
    """What chooses is called valid, or has no name that says what it is."""
    files = {"valid": found.files.get("valid") or found.files.get("train"), "test": found.files.get("test")}
    if not files["valid"]:
        files = {"valid": files["test"], "test": None}
    kind = target_kind(Domain(name=name, train=Source(paths=tuple(map(str, files["valid"] or ())))))
    made = TargetDraft(name, kind=kind)
    for split in ("valid", "test"):
        if paths := files[split]:
            key = _field(paths[0]) if kind == "text" else "text"
            made.sources[split] = Source(paths=tuple(map(str, paths)), field=key)
    return made


def _field(path: Path) -> str:
    """The key of the text in a file of rows."""
    if (kind := format_of(path)) not in ("jsonl", "parquet"):
        return "text"
    found = schema_of(read_rows(path, kind).rows)
    return found.field if found.kind == "text" else "text"
