"""Data in memory as files: lists, generators and `datasets` objects are written once, named by what they hold.

A file's name is the hash of its rows, so the same data given again is found in the cache of tokens, and a run resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from opmix.data.sources import SUFFIXES
from opmix.domain import CHAT_COLUMNS, COMPRESSED, HUB, PACKAGE, SPLITS, Split, is_url
from opmix.errors import ConfigError
from opmix.runs.files import default_cache_dir, writing_prefix

_SPLIT_NAMES: dict[str, Split] = {"validation": "valid", "val": "valid", "dev": "valid", "eval": "test"}
_KEPT = ("text", *dict.fromkeys(c for columns in CHAT_COLUMNS.values() for c in columns), "tools", "system", "input")
_BATCH = 256

Tokens = Callable[[list[str]], int]
"""How many tokens some texts are."""


def on_disk(
    domains: Mapping[str, Any], *, cache_dir: str | Path | None, tokens: Callable[[], Tokens]
) -> dict[str, Any]:
    """Domains as a configuration has them, what is in memory written to files.

    Args:
        domains: Name to a path, address, mapping with `train`, `valid`, `test`, or data: a `datasets.Dataset`, `DatasetDict` or
            `IterableDataset`, a list or generator of texts, rows or conversations (lists of turns).
        cache_dir: Where files go, in a folder `rows`; None: the user's cache folder.
        tokens: Makes the counter for streams that are cut at `max_tokens`; called only where there is one.

    Raises:
        ConfigError: Something else, an empty one, a list that may be paths or texts, or a stream without `max_tokens`.
    """
    folder = (Path(cache_dir) if cache_dir else default_cache_dir()) / "rows"
    return {str(name): _domain(f"domains.{name}", value, folder, tokens) for name, value in domains.items()}


def _domain(where: str, value: Any, folder: Path, tokens: Callable[[], Tokens]) -> Any:
    if _is_splits(value):
        value = _splits(where, value)
    if not isinstance(value, Mapping):
        source = _source(where, value, None, folder, tokens)
        return {"train": source} if isinstance(source, dict) else source
    most, written = value.get("max_tokens"), {key: inner for key, inner in value.items() if key != "max_tokens"}
    field = written.pop("field", None)
    for split in SPLITS:
        if split in value:
            limit = most if split == "train" or _is_stream(value[split]) else None
            written[split] = _source(f"{where}.{split}", value[split], limit, folder, tokens, field)
    return written if most is None or "train" in written else {**written, "max_tokens": most}


def _source(
    where: str, value: Any, most: Any, folder: Path, tokens: Callable[[], Tokens], field: str | None = None
) -> Any:
    own = {key: limit for key, limit in (("max_tokens", most), ("field", field)) if limit is not None}
    if value is None or isinstance(value, str | Path | Mapping) or _is_paths(where, value):
        short = {"paths": value} if own and not isinstance(value, Mapping) else value
        return {**own, **short} if own and isinstance(short, Mapping) else value
    if _is_stream(value) and most is None:
        raise ConfigError(
            f"{where}: a {type(value).__name__}, which may not end; expected how far to read: "
            '{"train": ..., "max_tokens": 50_000_000}'
        )
    if not isinstance(value, Iterable):
        raise ConfigError(
            f"{where}: a {type(value).__name__}; expected a path, an address such as hf://org/name, a datasets "
            f"object, or a "
            "list or generator of texts, rows or conversations"
        )
    rows: Iterator[dict[str, Any]] = (_row(f"{where}: row {number}", row, field) for number, row in enumerate(value, 1))
    if most is not None:
        rows = _until(rows, int(most), tokens(), field or "text")
    return {**own, "paths": str(_written(where, _decoded(where, rows), folder))}


def _decoded(where: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, of which Arrow has not looked whether their texts are any."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: a text in it is not UTF-8 ({error}); expected UTF-8; decode it again") from error


def _is_splits(value: Any) -> bool:
    """Whether it is a `DatasetDict`: a mapping of datasets that is no configuration."""
    return isinstance(value, Mapping) and type(value).__name__ in ("DatasetDict", "IterableDatasetDict")


def _splits(where: str, value: Mapping[str, Any]) -> dict[Split, Any]:
    named: dict[Split, Any] = {}
    for name, split in value.items():
        known = _SPLIT_NAMES.get(str(name), name)
        if known not in SPLITS:
            raise ConfigError(
                f"{where}: split {name!r}; expected {', '.join(SPLITS)} or {', '.join(_SPLIT_NAMES)}; give the "
                f"others as "
                "domains of their own, or leave them out"
            )
        named[known] = split
    if "train" not in named:
        raise ConfigError(f"{where}: splits {', '.join(map(str, value))}; expected one named train")
    return named


def _is_stream(value: Any) -> bool:
    return hasattr(value, "column_names") and not hasattr(value, "__len__")


def _is_paths(where: str, value: Any) -> bool:
    """Whether a list of strings names files; else it holds texts.

    Raises:
        ConfigError: Nothing tells.
    """
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str | Path) for item in value):
        return False
    named = [_names_a_file(item) for item in value]
    if all(named):
        return True
    texts = [isinstance(item, str) and any(mark.isspace() for mark in item.strip()) for item in value]
    if not any(named) and any(texts):
        return False
    raise ConfigError(
        f"{where}: {value[named.index(False)]!r:.80} may be a path or a text; expected paths that exist (or globs), "
        f"or texts; "
        'of texts give rows, [{"text": ...}, ...]'
    )


def _names_a_file(item: str | Path) -> bool:
    if isinstance(item, Path) or item.startswith((HUB, PACKAGE)) or (is_url(item) and not set(item) & set(" \n")):
        return True
    if len(item) > 1000 or "\n" in item:
        return False
    try:
        exists = Path(item).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
    return exists or Path(item).suffix in (*SUFFIXES, *COMPRESSED)


def _row(where: str, row: Any, field: str | None) -> dict[str, Any]:
    """One row as a line of JSON holds it; of a table's many columns those that opmix reads."""
    if isinstance(row, str):
        return {field or "text": row}
    if isinstance(row, list | tuple):
        return {"messages": list(row)}
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is a {type(row).__name__}; expected a text, a mapping, or a list of turns")
    kept = _KEPT if field is None else (*_KEPT, field)
    wanted = {key: row[key] for key in kept if key in row and row[key] is not None}
    return wanted or dict(row)


def _until(rows: Iterator[dict[str, Any]], most: int, tokens: Tokens, field: str) -> Iterator[dict[str, Any]]:
    """Rows up to the one that completes `most` tokens, at least: batches are counted, and the source is cut exactly when it is read."""
    seen = 0
    while seen < most and (batch := list(islice(rows, _BATCH))):
        yield from batch
        seen += tokens([_as_text(row.get(field, row)) for row in batch])


def _as_text(value: Any) -> str:
    """What is counted of a row: its text, or all the strings of a conversation."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return "\n".join(filter(None, map(_as_text, inner)))


def _written(where: str, rows: Iterator[dict[str, Any]], folder: Path) -> Path:
    """A JSON Lines file of the rows, named by its content; whole or not at all.

    Raises:
        ConfigError: There are none, or one is nothing that JSON can hold.
    """
    first = next(rows, None)
    if first is None:
        raise ConfigError(
            f"{where}: empty; expected at least one row (a generator can be read only once: make a new one)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(digest_size=16)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=writing_prefix(), suffix=".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            for number, row in enumerate(chain([first], rows), 1):
                line = _line(f"{where}: row {number}", row)
                digest.update(line)
                file.write(line)
        Path(temporary).chmod(0o644)
        name = folder / f"{digest.hexdigest()}.jsonl"
        Path(temporary).replace(name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return name


def _line(where: str, row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} cannot be written as JSON ({error}); expected text, numbers, lists and mappings"
        ) from error


def _plain(value: Any) -> Any:
    """Numbers of numpy, dates and the like."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is nothing that JSON knows")
