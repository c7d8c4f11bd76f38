"""From a `Source` to documents: which files it means, what is in them, and a fingerprint of their bytes."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from opmix.data import readers
from opmix.data.streams import forget, read_stream
from opmix.data.token_files import TOKENS_OF_FOLDER, beside, open_tokens
from opmix.domain import COMPRESSED, Source, SourceFormat, is_url, user_path
from opmix.errors import ConfigError, DataError
from opmix.runs.trace import span

SUFFIXES: dict[str, SourceFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".npy": "npy",
    ".bin": "bin",
}
TOKEN_FORMATS: tuple[SourceFormat, ...] = ("npy", "bin", "megatron", "datatrove", "litdata")
_ROLE = {
    "train": re.compile(r"train(ing)?(?![a-z])", re.IGNORECASE),
    "held out": re.compile(r"(valid(ation)?|val|dev|test|eval|heldout|held_out)(?![a-z])", re.IGNORECASE),
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file, Arrow folder or hub name that a source stands for."""

    path: str
    format: SourceFormat


def format_of(path: Path) -> SourceFormat | None:
    """The format that a file's name or a folder's contents tell; None when neither does."""
    if path.is_dir():
        marks = ("dataset_info.json", "dataset_dict.json")
        return "arrow" if any((path / mark).is_file() for mark in marks) else None
    if path.suffix in COMPRESSED:
        inner = SUFFIXES.get(Path(path.stem).suffix)
        return inner if inner in ("jsonl", "text") else None
    return SUFFIXES.get(path.suffix)


def place(domain: str | None, path: str) -> str:
    """The start of a message about a source."""
    return f"domain {domain!r}: {path}" if domain else path


def _expand(pattern: str, source: Source, where: str) -> list[Path]:
    """Files (and Arrow folders) behind one entry of `source.paths`, sorted.

    Raises:
        DataError: Nothing there, or a folder without any file of a known format.
    """
    try:
        path = user_path(pattern)
    except ConfigError as error:
        raise DataError(f"{where[:200]}: {error}") from error
    if not path.exists() and glob.has_magic(pattern):
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        matches = [match for match in map(Path, found) if match.is_file() or format_of(match)]
        if not matches:
            raise DataError(f"{where}: the pattern matches no file; expected at least one; check it and the folder")
        return matches
    if not path.exists():
        raise DataError(f"{where}: no such file or folder; expected a file, glob or folder; check the path")
    if not path.is_dir() and not path.is_file():
        raise DataError(
            f"{where}: a pipe or device; expected a regular file, which is read more than once; write it out"
        )
    if not path.is_dir() or format_of(path) == "arrow" or source.format == "arrow":
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
    if source.format in TOKENS_OF_FOLDER:
        known = [file for file in inside if file.match(TOKENS_OF_FOLDER[source.format])]
    else:
        kinds = [(file, format_of(file)) for file in inside]
        known = [file for file, kind in kinds if kind and source.format in (None, kind)]
    if not known:
        wanted = source.format or ", ".join(SUFFIXES)
        raise DataError(
            f"{where}: none of the folder's {len(inside)} files is of a known kind ({wanted}); "
            "give a glob such as 'folder/**/*.py' and the source's `format`"
        )
    _refuse_held_out(known, where)
    return known


def _refuse_held_out(files: list[Path], where: str) -> None:
    """A folder that holds its own held-out file would be trained on it."""
    roles = {role: [f for f in files if _ROLE[role].match(f.name)] for role in _ROLE}
    if roles["train"] and roles["held out"]:
        train, held = roles["train"][0], roles["held out"][0]
        raise DataError(
            f"{where}: the folder holds held-out files beside training files ({held.name} beside {train.name}); "
            "expected training "
            f"files alone; name them apart, as in {{train: '{train}', valid: '{held}'}}"
        )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def resolve(source: Source, *, domain: str | None = None) -> tuple[SourceFile, ...]:
    """Which files a source stands for, in reading order.

    Globs and folders are expanded and sorted, a file named twice is read once, names tell the formats.

    Args:
        source: The source.
        domain: Whose source it is, for messages.

    Returns:
        At least one file, each with its format.

    Raises:
        DataError: A missing file, an empty glob, an unknown suffix, or text and token ids in one source.
    """
    if source.format == "hub":
        return tuple(SourceFile(path=name, format="hub") for name in source.paths)
    addresses = [path for path in source.paths if is_url(path)]
    if addresses and (len(addresses) < len(source.paths) or source.format in TOKEN_FORMATS):
        raise DataError(
            f"{place(domain, addresses[0])}: a URL beside files, or of token ids; expected URLs of text or JSON alone; "
            "make them two domains, or copy the files"
        )
    if addresses:  # read as the hub's datasets are
        return tuple(SourceFile(path=path, format="hub") for path in addresses)
    files: dict[str, SourceFormat] = {}
    for pattern in source.paths:
        for path in _expand(pattern, source, place(domain, pattern)):
            kind = source.format or format_of(path)
            if kind is None:
                raise DataError(
                    f"{place(domain, str(path))}: unknown kind of file; expected {', '.join(SUFFIXES)} "
                    f"(text and JSON also with {' or '.join(COMPRESSED)}); set the source's `format`"
                )
            path = path.with_suffix(".bin") if kind == "megatron" else path  # its index may be named instead
            files[str(path)] = kind
    if len({kind in TOKEN_FORMATS for kind in files.values()}) > 1:
        raise DataError(
            f"{place(domain, source.paths[0])}: text and token ids in one source; expected one of the two; "
            "make them two domains, or keep one kind of file"
        )
    if source.in_place and (text := [path for path, kind in files.items() if kind not in TOKEN_FORMATS]):
        raise DataError(
            f"{place(domain, text[0])}: in_place, and this is no file of token ids; expected one of "
            f"{', '.join(TOKEN_FORMATS)}; leave in_place out, and its tokens are kept in the cache"
        )
    return tuple(SourceFile(path=path, format=kind) for path, kind in files.items())


def holds_tokens(source: Source, *, domain: str | None = None) -> bool:
    """Whether the source is already tokenised (see `TOKEN_FORMATS`).

    Raises:
        DataError: See `resolve`.
    """
    return resolve(source, domain=domain)[0].format in TOKEN_FORMATS


def iter_documents(source: Source, *, domain: str | None = None, keep: Path | None = None) -> Iterator[str]:
    """The documents of a source, streamed in a fixed order; empty ones are passed over.

    At most one document (for Parquet one batch of rows) is in memory at a time.

    Args:
        source: The source.
        domain: Whose source it is, for messages.
        keep: Folder in which rows of streams are kept as they come, so that a read that was stopped goes on; None: they are not.

    Yields:
        A document's text.

    Raises:
        DataError: A file is missing, damaged, lacks the field, is not UTF-8, or holds token ids.
    """
    for file in resolve(source, domain=domain):
        where = place(domain, file.path)
        if file.format in TOKEN_FORMATS:
            raise DataError(f"{where}: holds token ids, not text; expected text; read it with iter_token_documents")
        texts = readers.read_text(Path(file.path), where) if file.format == "text" else None
        for text in texts or read_rows(file, source, readers.TextField(source.field), where, keep):
            if text:
                yield text


def read_rows(
    file: SourceFile, source: Source, pick: readers.Pick[T], where: str, keep: Path | None = None
) -> Iterator[T]:
    """What `pick` makes of each row of one file or stream; `keep`: see `iter_documents`.

    Raises:
        DataError: The file has no rows, or cannot be read.
    """
    path = Path(file.path)
    match file.format:
        case "jsonl":
            return readers.read_jsonl(path, pick, where)
        case "parquet":
            return readers.read_parquet(path, pick, where)
        case "arrow":
            return readers.read_arrow(path, source, pick, where)
        case "hub":
            return read_stream(file.path, source, pick, where, keep)
        case _:
            raise DataError(f"{where}: a {file.format} file has no rows; expected JSON Lines, Parquet or a dataset")


def forget_streams(source: Source, keep: Path) -> None:
    """Remove what is kept of a source's streams."""
    for file in resolve(source):
        if file.format == "hub":
            forget(keep, file.path)


def iter_token_documents(
    source: Source, eos_id: int, *, domain: str | None = None
) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """The documents of a source of token ids, split where the format or the end-of-sequence id says; that id is left out.

    Args:
        source: A source of token files; `source.dtype` is the integer type of `.bin` ones.
        eos_id: The id that ends a document.
        domain: Whose source it is, for messages.

    Yields:
        One document's ids, shape (n,), n >= 1; what follows a file's last end is a document, too.

    Raises:
        DataError: A file is missing, damaged, or holds something else than integers.
    """
    for file in resolve(source, domain=domain):
        where = place(domain, file.path)
        if file.format not in TOKEN_FORMATS:
            raise DataError(f"{where}: holds text, not token ids; expected .npy or .bin; read it with iter_documents")
        opened = open_tokens(Path(file.path), file.format, source.dtype, where)
        tokens, start = opened.tokens, 0
        if opened.ends is not None:
            for end in opened.ends[:].tolist():
                if not start <= end <= len(tokens):
                    raise DataError(
                        f"{where}: its index ends a document at token {end}; expected {start} to {len(tokens)}; "
                        "copy both files again"
                    )
                document = np.array(tokens[start : end - 1 if end > start and tokens[end - 1] == eos_id else end])
                if len(document):
                    yield document
                start = end
            continue
        for block in range(0, len(tokens), readers.BLOCK):
            ends = np.flatnonzero(tokens[block : block + readers.BLOCK] == eos_id) + block
            for end in ends.tolist():
                if end > start:
                    yield np.array(tokens[start:end])
                start = end + 1
        if start < len(tokens):
            yield np.array(tokens[start:])


@span("fingerprint of files", "fingerprints")
def source_fingerprint(source: Source, *, domain: str | None = None) -> str:
    """A hash of what a source's documents are read from.

    Files count by their bytes and order, not by their names; those read in place, of which there is too much to hash, by their names,
    sizes and times of change; a hub dataset by name, configuration, split and revision (an unpinned one is taken not to change: pin it
    with `name@revision`).

    Returns:
        32 hexadecimal digits.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    total = hashlib.blake2b(digest_size=16)
    files = resolve(source, domain=domain)
    contents = [content for file in files for content in _contents(file)]
    if source.in_place:
        total.update(repr(("in-place-1", _known_by(contents, domain), source.dtype)).encode())
        return total.hexdigest()
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(lambda item: _digest(item[0], item[1], domain), contents))
    kinds = {file.format for file in files}
    options = (source.split, source.config_name) if kinds & {"arrow", "hub"} else ()
    dtype = source.dtype if "bin" in kinds else ""
    total.update(repr(("source-1", digests, options, dtype)).encode())
    return total.hexdigest()


def _contents(file: SourceFile) -> list[tuple[str, str | Path]]:
    """What to hash for one file: pairs of a label and a path to read (or a bare name)."""
    path = Path(file.path)
    if file.format == "hub" and not path.is_dir():
        return [("hub", file.path)]
    if path.is_dir():
        inside = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return [(f"{file.format}/{inner.relative_to(path).as_posix()}", inner) for inner in inside]
    label = path.suffix if path.suffix in COMPRESSED else ""
    return [(f"{file.format}{label}", part) for part in (path, *beside(path, file.format))]


def _known_by(contents: Sequence[tuple[str, str | Path]], domain: str | None) -> list[tuple[str, str, int, int]]:
    """Format, name below what all have in common, size and time of change of files."""
    paths = [Path(path) for _, path in contents]
    folder = os.path.commonpath([path.parent for path in paths])
    try:
        stats = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(f"{place(domain, str(error.filename))}: cannot be read ({error.strerror})") from error
    return [
        (label, path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns)
        for (label, _), path, stat in zip(contents, paths, stats, strict=True)
    ]


def _digest(label: str, content: str | Path, domain: str | None) -> str:
    digest = hashlib.blake2b(label.encode(), digest_size=16)
    if isinstance(content, str):
        digest.update(b"\0" + content.encode())
        return digest.hexdigest()
    try:
        with content.open("rb") as stream:
            while block := stream.read(readers.BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(
            f"{place(domain, str(content))}: cannot be read ({error.strerror}); expected a readable file"
        ) from error
    return digest.hexdigest()
