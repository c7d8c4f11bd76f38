"""Which files of a folder are which domain's training, validation and test text, told from names alone."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from opmix.data.sources import format_of
from opmix.domain import COMPRESSED, Source, SourceFormat, Split
from opmix.errors import DataError

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "heldout"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CODE = (
    ".py",
    ".js",
    ".ts",
    ".java",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".rs",
    ".go",
    ".rb",
    ".sh",
    ".tex",
    ".rst",
    ".html",
    ".xml",
)
"""Files that are text under a name that does not say so."""
_ASIDE = {
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "contributing",
    "citation",
    "copying",
    "authors",
    "dataset_info",
    "dataset_infos",
    "metadata",
    "state",
    "search",
}
"""Files that speak about data instead of being data."""
_SHARD = re.compile(r"([-_.](\d+-of-\d+|0\d*|(part|shard|chunk)[-_.]?\d+))+$")


@dataclass
class Found:
    """The files of one domain, as they lie in the folder."""

    label: str
    """What the folder or file is called; not yet a valid name."""
    files: dict[Split, list[Path]] = field(default_factory=dict)
    arrow: tuple[str, ...] | None = None
    """A `save_to_disk` folder: the names of its splits, none if it has no such division."""
    hub: dict[Split, Source] = field(default_factory=dict)
    """Splits of a dataset of the hub, which has no files here."""

    def add(self, split: Split, path: Path) -> None:
        """One more file."""
        self.files.setdefault(split, []).append(path)


def kind_of(path: Path) -> SourceFormat | None:
    """The format of a file that looks like data, or None."""
    if path.name.partition(".")[0].lower() in _ASIDE:
        return None
    return format_of(path) or ("text" if path.suffix in CODE else None)


def find_domains(folder: Path) -> list[Found]:
    """The domains of a folder, in alphabetical order.

    A sub-folder with data anywhere below it is a domain, its files told apart by `train`, `valid` and `test` in their names (or
    in the names of folders inside); files beside the sub-folders are a domain each, `web-train.jsonl` and `web-valid.jsonl`
    together. Where the sub-folders are themselves called `train`, `valid` and `test`, what lies in them is matched by name.

    Args:
        folder: The folder; while it holds nothing but one other folder, that one is looked at instead.

    Raises:
        DataError: There is no such folder, or nothing in it looks like data.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with text in files; check the path")
    files, folders = _inside(folder)
    while not files and len(folders) == 1 and format_of(folders[0]) != "arrow" and not _split_word(folders[0].name):
        folder = folders[0]
        files, folders = _inside(folder)
    if not files and not folders:
        raise DataError(
            f"{folder}: holds no data; expected .jsonl, .txt, .md, .parquet, .npy or .bin files (the first two also "
            "with "
            f"{' or '.join(COMPRESSED)}), or source code, in one sub-folder or one file a domain"
        )
    by_split = folders and not files and all(_split_word(each.name) for each in folders)
    found: dict[str, Found] = {}
    for path in files:
        label, split = flat_name(path)
        found.setdefault(label or folder.name, Found(label or folder.name)).add(split or "train", path)
    for path in folders:
        if by_split:
            _collect_by_split(path, SPLIT_WORDS[path.name.lower()], found, folder.name)
        else:
            _merge(found, _one_domain(path))
    return [found[label] for label in sorted(found)]


def domain_of(place: Path) -> list[Found]:
    """A file or folder as one domain; the domains of a folder that has sub-folders of data, none of them named as splits.

    Raises:
        DataError: Nothing in it looks like data.
    """
    if place.is_file():
        label, split = flat_name(place)
        return [Found(label or place.stem, {split or "train": [place]})]
    if format_of(place) == "arrow":
        return [_one_domain(place)]
    files, folders = _inside(place)
    return [_one_domain(place)] if files and not folders else find_domains(place)


def flat_name(path: Path) -> tuple[str, Split | None]:
    """A file's name without suffixes, split and shard number, and the split.

    Examples:
        >>> flat_name(Path("web-train-00001-of-00004.parquet"))
        ('web', 'train')
        >>> flat_name(Path("valid_code.jsonl.gz")), flat_name(Path("news.2024.jsonl"))
        (('code', 'valid'), ('news.2024', None))
    """
    stem = path.stem if path.suffix not in COMPRESSED else Path(path.stem).stem
    stem = _SHARD.sub("", stem)
    for pattern in (r"^(?P<rest>.*?)[-_.]*\b(?P<word>[A-Za-z]+)$", r"^(?P<word>[A-Za-z]+)[-_.]+(?P<rest>.*)$"):
        match = re.match(pattern, stem.replace("_", "-"))
        if match and (split := _split_word(match["word"])):
            start = match.start("rest")
            return stem[start : match.end("rest")], split
    return stem, None


def domain_names(labels: Iterable[str]) -> dict[str, str]:
    """A valid, distinct domain name for every label.

    Examples:
        >>> domain_names(["Café & Bar", "café_bar!", "日本"])
        {'Café & Bar': 'Cafe_Bar', 'café_bar!': 'cafe_bar-2', '日本': 'domain'}
    """
    names: dict[str, str] = {}
    for label in labels:
        plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
        stem = re.sub(r"[^A-Za-z0-9.\-]+", "_", plain).strip("_.-")[:70] or "domain"
        name, number = stem, 1
        while name.lower() in {other.lower() for other in names.values()}:
            number += 1
            name = f"{stem}-{number}"
        names[label] = name
    return names


def _split_word(word: str) -> Split | None:
    return SPLIT_WORDS.get(word.lower())


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Data files directly in a folder, and sub-folders with data somewhere below."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); expected a readable folder") from error
    files = [entry for entry in entries if entry.is_file() and kind_of(entry)]
    folders = [entry for entry in entries if entry.is_dir() and (format_of(entry) == "arrow" or _data_below(entry))]
    return files, folders


def _data_below(folder: Path) -> list[Path]:
    """Data files anywhere below, hidden ones left out."""
    inside = (path for path in folder.rglob("*") if path.is_file() and kind_of(path))
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _one_domain(folder: Path) -> Found:
    if format_of(folder) == "arrow":
        return Found(folder.name, {"train": [folder]}, _arrow_splits(folder))
    found = Found(folder.name)
    files = _data_below(folder)
    splits = [_split_below(path, folder) for path in files]
    for path, split in zip(files, splits, strict=True):
        if split or "train" not in splits:  # beside named training files, unnamed ones are somebody's notes
            found.add(split or "train", path)
    return found


def _split_below(path: Path, folder: Path) -> Split | None:
    for part in path.relative_to(folder).parts[:-1]:
        if split := _split_word(part):
            return split
    return flat_name(path)[1]


def _arrow_splits(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, RecursionError):
        return ()


def _collect_by_split(folder: Path, split: Split, found: dict[str, Found], fallback: str) -> None:
    files, folders = _inside(folder)
    for path in files:
        label = flat_name(path)[0] or fallback
        label = fallback if _SHARD.search(f"-{label}") and label.isdigit() else label
        found.setdefault(label, Found(label)).add(split, path)
    for inner in folders:
        for path in [inner] if format_of(inner) == "arrow" else _data_below(inner):
            found.setdefault(inner.name, Found(inner.name)).add(split, path)


def _merge(found: dict[str, Found], more: Found) -> None:
    if more.label not in found:
        found[more.label] = more
        return
    for split, paths in more.files.items():  # a file `web.jsonl` beside a folder `web`
        found[more.label].files.setdefault(split, []).extend(paths)
