"""Where a domain's text is, in the words of `datasets.load_dataset`; and where tokenised files are assumed to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from opmix.domain import CHAT_COLUMNS, RowSchema
from opmix.errors import ConfigError, DataError
from opmix.exporters.plan import DomainPlan, MixturePlan

_BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_BY_FORMAT = {"jsonl": "json", "parquet": "parquet", "text": "text", "arrow": "arrow"}
_COMPRESSED = (".gz", ".zst")
_ARROW_MARKS = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True, kw_only=True)
class TextLocation:
    """Arguments of `datasets.load_dataset` that open a domain, one row a document or a conversation."""

    path: str
    """A builder (`json`, `parquet`, `arrow`, `text`) or a hub name."""
    field: str
    split: str = "train"
    name: str | None = None
    revision: str | None = None
    data_files: tuple[str, ...] = ()
    rows: RowSchema = "text"

    @property
    def columns(self) -> list[str]:
        """What a row is made of."""
        if self.rows == "text":
            return [self.field]
        return list(CHAT_COLUMNS["conversations" if self.rows == "sharegpt" else self.rows])

    @property
    def is_hub(self) -> bool:
        """Whether `path` is a hub name."""
        return not self.data_files

    def arguments(self) -> dict[str, Any]:
        """Keywords for `load_dataset`."""
        optional = {"name": self.name, "revision": self.revision, "data_files": list(self.data_files) or None}
        extra = {"sample_by": "document"} if self.path == "text" and self.data_files else {}
        return {"path": self.path, **{k: v for k, v in optional.items() if v}, **extra, "split": self.split}


TEXT_ONLY: tuple[RowSchema, ...] = ("text",)


def row_location(
    domain: DomainPlan, trainer: str, *, whole_files: bool = False, reads: Collection[RowSchema] = TEXT_ONLY
) -> TextLocation:
    """How a trainer that reads texts or conversations opens a domain.

    Args:
        domain: The domain.
        trainer: Its name, for messages.
        whole_files: Whether it can read a plain text file as one row, as opmix does.
        reads: The rows it understands.

    Raises:
        DataError: No source is known, it holds token ids or rows that the trainer does not read, or its format cannot be told.
    """
    source = domain.source
    if domain.rows not in reads:
        what = "texts" if domain.rows == "text" else f"conversations ({domain.rows})"
        raise DataError(
            f"domain {domain.name!r}: its rows are {what}, and {trainer} reads {' or '.join(reads)}; convert them and "
            "give "
            f"--path {domain.name}=FILES, or export to a trainer that reads them"
        )
    if source is None:
        raise DataError(
            f"domain {domain.name!r}: the run does not say where its text is, and {trainer} needs it; "
            f"give --path {domain.name}=FILES or hub:NAME"
        )
    if source.format == "hub":
        name, _, revision = source.paths[0].partition("@")
        return TextLocation(
            path=name,
            name=source.config_name,
            split=source.split or "train",
            revision=revision or None,
            field=source.field,
            rows=domain.rows,
        )
    found = [_builder(domain.name, path, source.format, source.split) for path in source.paths]
    builders = {builder for builder, _ in found}
    if len(builders) > 1:
        raise DataError(
            f"domain {domain.name!r}: {', '.join(sorted(builders))} files in one domain; {trainer} opens one kind; "
            f"convert them, or give --path {domain.name}=FILES"
        )
    builder = builders.pop()
    if builder == "text" and not whole_files:
        raise DataError(
            f"domain {domain.name!r}: plain text files; {trainer} would take every line for a document; "
            f"write JSON Lines or Parquet and give --path {domain.name}=FILES"
        )
    files = tuple(file for _, files in found for file in files)
    return TextLocation(path=builder, data_files=files, field=source.field, rows=domain.rows)


def _builder(name: str, path: str, format_: str | None, split: str | None) -> tuple[str, tuple[str, ...]]:
    """Builder and file patterns for one path of a source."""
    place = Path(path)
    if format_ == "arrow" or any((place / mark).is_file() for mark in _ARROW_MARKS):
        folder = place / split if split and (place / split).is_dir() else place
        return "arrow", (str(folder / "*.arrow"),)
    if format_ in ("npy", "bin", "megatron", "datatrove") or place.suffix in (".npy", ".bin"):
        raise DataError(
            f"domain {name!r}: {path} holds token ids and this trainer reads text; give --path {name}=TEXT_FILES"
        )
    if place.is_dir():
        return _inside(name, place, format_)
    suffix = _suffix(place)
    builder = _BY_FORMAT.get(format_ or "") or _BUILDERS.get(suffix)
    if builder is None:
        raise DataError(
            f"domain {name!r}: the kind of {path} cannot be told from here (relative paths start at --base); "
            f"expected a name ending in {', '.join(_BUILDERS)}; give --path {name}=FILES"
        )
    return builder, (path,)


def _inside(name: str, folder: Path, format_: str | None) -> tuple[str, tuple[str, ...]]:
    endings = {
        (_suffix(file), "".join(file.suffixes[-2:]) if file.suffix in _COMPRESSED else file.suffix)
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    wanted = {(_BUILDERS[kind], ending) for kind, ending in endings if kind in _BUILDERS}
    if format_ is not None:
        wanted = {(builder, ending) for builder, ending in wanted if builder == _BY_FORMAT.get(format_)}
    builders = {builder for builder, _ in wanted}
    if len(builders) != 1:
        what = f"files of {len(builders)} kinds" if builders else "no file of a known kind"
        raise DataError(f"domain {name!r}: folder {folder} has {what}; give a glob: --path {name}='{folder}/*.jsonl'")
    return builders.pop(), tuple(f"{folder}/**/*{ending}" for _, ending in sorted(wanted))


def _suffix(path: PurePath) -> str:
    return PurePath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix


def tokenised_paths(
    plan: MixturePlan, template: str, *, raw: bool = False
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Where each domain's tokenised data are: as the user says, else by `template`, with a note.

    Args:
        plan: The mixture.
        template: With `{domain}`.
        raw: Whether the trainer reads bare token ids, so that a `.bin` source of the run will do.
    """
    places: dict[str, list[str]] = {}
    assumed: list[str] = []
    for domain in plan.domains:
        source = domain.source
        if domain.path is not None:
            places[domain.name] = [domain.path]
        elif raw and source is not None and (source.format == "bin" or _all_end(source.paths, ".bin")):
            places[domain.name] = list(source.paths)
        else:
            places[domain.name] = [template.replace("{domain}", domain.name)]
            assumed.append(domain.name)
    chats = plan.chats
    notes = (
        (f"{', '.join(chats)}: conversations, to be tokenised with their chat template and a mask of the answers",)
        if chats
        else ()
    )
    if not assumed:
        return places, notes
    return places, (
        *notes,
        f"where the tokenised data of {', '.join(assumed)} are is assumed ({template}); "
        "give --path 'DIR/{domain}' or --path NAME=PATH",
    )


def _all_end(paths: Sequence[str], suffix: str) -> bool:
    return all(path.endswith(suffix) for path in paths)


def relative_note(places: Iterable[TextLocation]) -> tuple[str, ...]:
    """That relative paths are those of the run's configuration, if there are any."""
    relative = [
        file for place in places for file in place.data_files if "://" not in file and not Path(file).is_absolute()
    ]
    if not relative:
        return ()
    return (
        f"relative paths such as {relative[0]} start from the folder of the run's configuration; --base makes them "
        "whole",
    )


def one_kind(places: Mapping[str, TextLocation], trainer: str) -> list[str]:
    """The columns of every domain, for trainers that put the rows of all into one table.

    Raises:
        ConfigError: They differ.
    """
    columns = {tuple(place.columns): name for name, place in places.items()}
    if len(columns) > 1:
        shown = ", ".join(f"{name!r}: {' and '.join(names)}" for names, name in columns.items())
        raise ConfigError(
            f"{trainer} concatenates datasets by column, and the domains' rows differ ({shown}); expected one kind of "
            "rows; convert "
            "them, or rename columns"
        )
    return list(next(iter(columns)))


def held_out_warning(plan: MixturePlan) -> tuple[str, ...]:
    """That the files also hold documents which opmix measures on."""
    mixed = [f"{d.name} ({d.held_out:.0%})" for d in plan.domains if d.held_out > 0 and d.path is None]
    if not mixed:
        return ()
    return (
        f"the files of {', '.join(mixed)} also hold the documents that opmix held out; the trainer will see them, "
        "so do not judge it on those",
    )
