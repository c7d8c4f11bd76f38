"""What `opmix init` is given: folders and files here, datasets of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from opmix.data.inspect.hub import first_rows, hub_size, parts_of
from opmix.data.inspect.schema import schema_of
from opmix.data.inspect.survey import Size
from opmix.domain import HUB, Kind, Source, Split, hub_dataset, user_path
from opmix.errors import DataError
from opmix.scaffold.layout import SPLIT_WORDS, Found, domain_of, find_domains
from opmix.settings import changed

HUB_TOKENS = 50_000_000
"""Read of a dataset of the hub where it holds more, or does not say how much."""
_MOST_CONFIGURATIONS = 64
_NAME = re.compile(r"[\w.\-]+/[\w.\-]+(@[\w.\-]+)?", re.ASCII)
"""Of a dataset, as `datasets.load_dataset` takes it."""


def check_places(places: Sequence[str | Path]) -> None:
    """Every place is a folder or file here, or may be a dataset of the hub.

    Raises:
        DataError: One of them is neither.
        ConfigError: One of them is no text that a system takes for a path.
    """
    for place in places:
        text = str(place)
        if not text.startswith(HUB) and not user_path(place).exists() and not _NAME.fullmatch(text):
            raise DataError(
                f"{text}: no such folder; expected text in files, a sub-folder or a file for each domain, or org/name "
                "of a dataset of the hub"
            )


def find_all(places: Sequence[str | Path]) -> list[Found]:
    """The domains of folders, files and datasets.

    One folder holds the domains (see `find_domains`). Of several places each is one, unless it has sub-folders of data or is a dataset
    of several configurations.

    Raises:
        DataError: One of them is nowhere, or holds no data.
    """
    found: dict[str, Found] = {}
    for place in places:
        for each in _found(place, alone=len(places) == 1):
            label, number = each.label, 1
            while each.label in found:
                number += 1
                each.label = f"{label} {number}"
            found[each.label] = each
    return list(found.values())


def _found(place: str | Path, *, alone: bool) -> list[Found]:
    text = str(place)
    if text.startswith(HUB):
        return _on_hub(text)
    path = Path(os.path.abspath(user_path(place)))  # noqa: PTH100 (`resolve` would leave a folder of links)
    if not path.exists():
        return _on_hub(HUB + text)
    return find_domains(path) if alone else domain_of(path)


def _on_hub(address: str) -> list[Found]:
    """A domain for each configuration of a dataset."""
    source = Source(**hub_dataset(address))
    parts = parts_of(source)
    if len(parts) > _MOST_CONFIGURATIONS:
        shown = ", ".join(list(parts)[:8])
        raise DataError(
            f"{address}: {len(parts)} configurations ({shown}, ...); expected at most {_MOST_CONFIGURATIONS}; name "
            f"those that you want, as in {HUB}{source.paths[0]}/{next(iter(parts))}"
        )
    named = source.paths[0].partition("@")[0].rpartition("/")[2]
    found = []
    for config, splits in parts.items():
        told = {SPLIT_WORDS[name]: name for name in reversed(splits) if name in SPLIT_WORDS}
        wanted: dict[Split, str] = {"train": source.split} if source.split else told
        if "train" not in wanted and len(splits) == 1:
            wanted = {"train": splits[0]}
        only = None if len(parts) == 1 and source.config_name is None else config
        sources = {split: changed(source, config_name=only, split=name) for split, name in wanted.items()}
        found.append(Found(named if len(parts) == 1 else config, hub=sources))
    return found


def hub_sources(
    found: Found, tokenizer: object, notes: list[str]
) -> tuple[dict[Split, Source], Kind, dict[Split, Size]]:
    """Sources of a dataset's splits, what they hold, and how much of it is read.

    Raises:
        DataError: No training split, no text, or it cannot be read.
    """
    if "train" not in found.hub:
        names = ", ".join(str(source.split) for source in found.hub.values()) or "none known"
        raise DataError(f"{found.label}: splits {names}; expected one named train; name it, as in {HUB}org/name:SPLIT")
    rows = first_rows(found.hub["train"], domain=found.label)
    schema = schema_of(rows)
    if schema.kind == "none":
        keys = ", ".join(map(repr, rows[0])) if rows else "none"
        raise DataError(f"{found.label}: no column holds text in every one of its first rows (columns: {keys})")
    if schema.kind == "text" and schema.field != "text" and schema.others:
        notes.append(f"the text is taken from {schema.field!r}; {', '.join(map(repr, schema.others))} would do, too")
    kind: Kind = "chat" if schema.kind == "chat" else "text"
    sources, sizes = dict[Split, Source](), dict[Split, Size]()
    for split, given in found.hub.items():
        source = given if kind == "chat" else changed(given, field=schema.field)
        size, ends = hub_size(source, domain=found.label, kind=kind, tokenizer=tokenizer, most=HUB_TOKENS)
        if not ends:
            source = changed(source, max_tokens=HUB_TOKENS)
            notes.append(
                f"{split} is read up to {HUB_TOKENS:,} tokens (max_tokens): it is larger, or does not say its size"
            )
        sources[split], sizes[split] = source, size
    return sources, kind, sizes
