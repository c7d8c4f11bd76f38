"""From the files of a found domain to what a configuration says of it, or why it cannot be used."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opmix.data.inspect.samples import read_rows
from opmix.data.inspect.schema import Schema, schema_of
from opmix.data.inspect.splits import workable_holdout
from opmix.data.inspect.survey import SAMPLED_FILES, Size, spread, survey
from opmix.data.sources import SUFFIXES, TOKEN_FORMATS, format_of
from opmix.domain import COMPRESSED, SPLITS, Domain, Kind, Source, SourceFormat, Split
from opmix.errors import DataError
from opmix.scaffold.layout import SPLIT_WORDS, Found, kind_of
from opmix.scaffold.places import hub_sources


@dataclass
class DomainDraft:
    """A domain as it will stand in the configuration."""

    name: str
    label: str
    sources: dict[Split, Source] = field(default_factory=dict)
    sizes: dict[Split, Size] = field(default_factory=dict)
    kind: Kind = "text"
    holdout: float = 0.05
    """Share of the documents split off for each missing held-out set."""
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    """Why it is left out; empty: it is not."""

    @property
    def train_tokens(self) -> int:
        """Estimated tokens of `train`, before anything is split off."""
        return self.sizes["train"].tokens

    def held_out_tokens(self) -> int:
        """Estimated tokens that mixtures are chosen by."""
        if "valid" in self.sizes:
            return self.sizes["valid"].row_tokens
        return round(self.holdout * self.sizes["train"].row_tokens)


def draft(found: Found, name: str, tokenizer: Any = None) -> DomainDraft:
    """Look into a found domain's files.

    Returns:
        The draft; whatever is wrong is its `problem`.
    """
    result = DomainDraft(name, found.label)
    try:
        if found.hub:
            result.sources, result.kind, result.sizes = hub_sources(found, tokenizer, result.notes)
            return result
        if found.arrow is not None:
            result.sources, result.kind = _arrow_sources(found)
        else:
            result.sources, result.kind = _file_sources(found, result.notes)
        result.sizes = {
            split: size
            for split, source in result.sources.items()
            if (size := survey(source, domain=found.label, kind=result.kind, tokenizer=tokenizer)) is not None
        }
        result.holdout = _holdout(result)
    except (DataError, UnicodeEncodeError) as error:
        result.problem = str(error)
    return result


def _holdout(each: DomainDraft) -> float:
    """A share that leaves no split of a small domain empty.

    Raises:
        DataError: There is none.
    """
    documents = each.sizes["train"].documents
    given = {split: each.sources.get(split) for split in ("valid", "test")}
    domain = Domain(name=each.name, train=each.sources["train"], valid=given["valid"], test=given["test"])
    share = workable_holdout(domain, documents)
    if share is None:
        raise DataError(
            f"{each.label}: {documents} document(s), too few to split held-out sets off; expected some ten, or files "
            "named `valid` "
            "and `test`; cut long documents into several"
        )
    return share


def _file_sources(found: Found, notes: list[str]) -> tuple[dict[Split, Source], Kind]:
    if "train" not in found.files:
        raise DataError(
            f"{found.label}: only {' and '.join(found.files)} files; expected training files; name some `train`"
        )
    kept = _one_kind(found, notes)
    sources: dict[Split, Source] = {}
    holds: set[Kind] = set()
    for split in SPLITS:
        if files := kept.get(split):
            for file in files:
                str(file).encode()  # a name that is no text cannot stand in YAML
            kind = kind_of(files[0])
            schema = _schema(files, kind) if kind in ("jsonl", "parquet") else Schema("text", "text")
            holds.add("chat" if schema.kind == "chat" else "text")
            if schema.kind == "text" and schema.field != "text" and schema.others and split == "train":
                others = ", ".join(map(repr, schema.others))
                notes.append(f"the text is taken from {schema.field!r}; {others} would do, too")
            text_field = "text" if schema.kind == "chat" else schema.field
            told = format_of(files[0]) is not None
            sources[split] = Source(paths=patterns(files), format=None if told else kind, field=text_field)
    if len(holds) > 1:
        raise DataError(
            f"{found.label}: text in one split and chats in another; expected one kind; make them two domains"
        )
    return sources, holds.pop()


def _one_kind(found: Found, notes: list[str]) -> dict[Split, list[Path]]:
    """Only the files of the format that holds most bytes."""
    by_kind: dict[SourceFormat | None, int] = defaultdict(int)
    for files in found.files.values():
        for file in files:
            by_kind[kind_of(file)] += file.stat().st_size
    main = max(by_kind, key=lambda kind: by_kind[kind])
    for kind, size in by_kind.items():
        if kind != main:
            notes.append(f"{size:,} bytes of {kind} files are left out beside the {main} files")
    kept = {split: [f for f in files if kind_of(f) == main] for split, files in found.files.items()}
    if not kept.get("train"):
        raise DataError(
            f"{found.label}: its training files are not {main} as most of its files are; expected one format"
        )
    if main in TOKEN_FORMATS:
        notes.append("token ids: they must come from the model's own tokenizer; raw .bin files are taken to be uint16")
    return kept


def _schema(files: Sequence[Path], kind: SourceFormat | None) -> Schema:
    """The schema that all sampled files share.

    Raises:
        DataError: There is no text, or another key in another file, or chats that opmix does not read.
    """
    schemas = {f: schema_of(read_rows(f, kind or "jsonl").rows) for f in spread(files, SAMPLED_FILES)}
    for file, schema in schemas.items():
        if schema.kind == "none":
            rows = read_rows(file, kind or "jsonl").rows
            keys = sorted({key for row in rows for key in row})[:8]
            raise DataError(
                f"{file}: no key holds text in every one of its first {len(rows)} rows (keys: "
                f"{', '.join(map(repr, keys)) or 'none'}); "
                "expected one, such as 'text'; split the file by schema or drop the odd rows"
            )
    fields = {(schema.kind, schema.field): file for file, schema in schemas.items()}
    if len(fields) > 1:
        told = ", ".join(f"{key!r} in {file.name}" for (_, key), file in fields.items())
        raise DataError(
            f"{files[0].parent}: mixed schemas ({told}); expected one text key a domain; rename keys or make two "
            "domains"
        )
    return next(iter(schemas.values()))


def _arrow_sources(found: Found) -> tuple[dict[Split, Source], Kind]:
    folder = found.files["train"][0]
    splits: dict[Split, str | None] = {"train": None}
    if found.arrow:
        splits = {SPLIT_WORDS[each]: each for each in found.arrow if each in SPLIT_WORDS}
        if "train" not in splits:
            raise DataError(f"{folder}: splits {', '.join(found.arrow)}; expected 'train' among them")
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    part = loaded[splits["train"]] if found.arrow else loaded
    schema = schema_of(list(part.select(range(min(len(part), 100)))))
    if schema.kind == "none":
        raise DataError(f"{folder}: no column holds plain text (it has {', '.join(part.column_names)}); expected one")
    kind: Kind = "chat" if schema.kind == "chat" else "text"
    key = "text" if kind == "chat" else schema.field
    return {s: Source(paths=(str(folder),), split=name, field=key) for s, name in splits.items()}, kind


def patterns(files: Sequence[Path]) -> tuple[str, ...]:
    """A path, the shortest glob that matches exactly these files, or all their paths.

    Globs are tried by suffix: files of several kinds become several patterns.
    """
    by_suffix: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        inner = Path(file.stem).suffix if file.suffix in COMPRESSED and Path(file.stem).suffix in SUFFIXES else ""
        by_suffix[inner + file.suffix].append(file)
    return tuple(pattern for suffix, group in by_suffix.items() for pattern in _pattern(group, suffix))


def _pattern(files: Sequence[Path], suffix: str) -> list[str]:
    if len(files) == 1:
        return [str(files[0])]
    common = os.path.commonpath([file.parent for file in files])
    prefix = _shared_start([file.name.removesuffix(suffix) for file in files])
    for middle in ("", "**/"):
        for start in dict.fromkeys((prefix, "")):
            pattern = f"{glob.escape(common)}/{middle}{glob.escape(start)}*{glob.escape(suffix)}"
            found = set(glob.glob(pattern, recursive=True))  # noqa: PTH207 (as data.sources expands it)
            if found == {str(file) for file in files}:
                return [pattern]
    return [str(file) for file in files]


def _shared_start(names: Sequence[str]) -> str:
    """What all names begin with, digits at its end left out: they number the files."""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same].rstrip("0123456789")
