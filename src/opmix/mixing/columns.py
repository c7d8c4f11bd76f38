"""One CSV of finished runs: an id and columns by run, with everything that cannot be trusted named before it is used."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opmix.errors import DataError
from opmix.mixing.mixture import FloatArray

ID_COLUMNS = ("run", "index", "run_id", "id", "name")
"""Columns that identify a run, in the order of preference; all of them are ids, never data (Olmix writes three)."""

_COUNTERS = re.compile(r"(.*[/._])?(runtime|(samples|steps|tokens)_per_second|epoch|(global_)?step|timestamp)", re.I)
_SAVED_INDEX = re.compile(r"unnamed: ?\d+|__index_level_\d+__|level_\d+", re.I)
_SCORES = re.compile(
    "acc(uracy)?|auc|auprc|auroc|bleu|chrf|em|exact|f1|mcc|ndcg|pass|precision|recall|reward|rouge|score|winrate"
)
_LOSSES = re.compile("loss|nll|bpb|ppl|perplexity|error")


@dataclass(frozen=True)
class Columns:
    """Columns of one table by run id."""

    path: Path
    ids: tuple[str, ...]
    id_column: str
    names: tuple[str, ...]
    values: FloatArray  # (M, columns); NaN where a cell is no number
    not_numbers: Mapping[str, str] = field(default_factory=dict)
    """Column: where its first cell that is no number stands, and what it says."""

    def __post_init__(self) -> None:
        # Names reach reports, terminals and other trainers' files, where a line break ends a comment.
        for what, names in (("column", self.names), ("run", self.ids)):
            for name in names:
                if not name.isprintable():
                    raise DataError(
                        f"{self.path}: {what} {name!r}: expected a name without line breaks and control characters"
                    )

    def select(self, names: Sequence[str], ids: Sequence[str]) -> FloatArray:
        """Columns as numbers, (M, len(names)), in the order of `ids`.

        Raises:
            DataError: A cell of theirs is no number.
        """
        for name in names:
            if name in self.not_numbers:
                raise DataError(f"{self.not_numbers[name]}; expected a number")
        row = {run: number for number, run in enumerate(self.ids)}
        column = {name: number for number, name in enumerate(self.names)}
        selected: FloatArray = self.values[[row[run] for run in ids]][:, [column[name] for name in names]]
        return selected


def read_columns(path: Path, *, id_column: str | None = None) -> Columns:
    """All columns of a CSV, with the run id as text.

    Args:
        path: With a header and one row a run.
        id_column: The column that identifies runs; None: the first of `ID_COLUMNS` that is there.

    Raises:
        DataError: A file that cannot be read, a name that stands twice or holds control characters, a row longer or
            shorter than the header, a run that stands twice.
    """
    header, rows = _read(path)
    lowered = {name.lower(): name for name in header}
    if id_column is not None and id_column not in header:
        raise DataError(f"{path}: no column {id_column!r} to join on; the ratios table identifies runs by it")
    key = id_column or next((lowered[name] for name in ID_COLUMNS if name in lowered), None)
    if key is None:
        other = next((name for mark, name in (("\t", "tabs"), (";", "semicolons")) if mark in header[0]), None)
        raise DataError(
            f"{path}: columns are parted by {other}; expected commas; write the table again as CSV"
            if other and len(header) == 1
            else f"{path}: no run id among {header[:6]}...; expected a column {' or '.join(map(repr, ID_COLUMNS[:2]))}"
        )
    at = header.index(key)
    ids = tuple(_normal_id(cells[at]) for _, cells in rows)
    seen: set[str] = set()
    for (line, _), run in zip(rows, ids, strict=True):
        if run in seen or not run:
            raise DataError(
                f"{path}:{line}: run {run!r} {'appears twice' if run else 'is empty'}; expected one row a run"
            )
        seen.add(run)
    kept = [i for i, name in enumerate(header) if name and name.lower() not in ID_COLUMNS]
    values = np.full((len(rows), len(kept)), np.nan)
    not_numbers: dict[str, str] = {}
    for number, (line, cells) in enumerate(rows):
        for column, i in enumerate(kept):
            try:
                values[number, column] = float(cells[i])
            except ValueError:
                not_numbers.setdefault(header[i], f"{path}:{line}: column {header[i]!r} is {cells[i]!r}")
    return Columns(path, ids, key, tuple(header[i] for i in kept), values, not_numbers)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and rows that are not empty with the line each ends in."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a CSV file with a header") from error
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and one row a run")
    for number, name in enumerate(header, start=1):
        if name and name in header[: number - 1]:
            raise DataError(
                f"{path}: column {name!r} stands twice (columns {header.index(name) + 1} and {number}); "
                "expected each name once, so rename one or leave it out"
            )
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}:{line}: {len(row)} fields where the header has {len(header)}; expected one a column "
                "(decimal commas, or a separator inside a text without quotes?)"
            )
    return header, rows


def is_counter(name: str) -> bool:
    """Whether a column counts steps or times, as trainers log beside their losses.

    Examples:
        >>> [is_counter(n) for n in ("train_runtime", "eval/steps_per_second", "step", "eval_loss", "footstep")]
        [True, True, True, False, False]
    """
    return _COUNTERS.fullmatch(name) is not None


def is_saved_index(name: str) -> bool:
    """Whether pandas wrote its row numbers under this name."""
    return _SAVED_INDEX.fullmatch(name) is not None


def reads_as_score(name: str) -> bool:
    """Whether more of it sounds better, such as `mmlu_acc`, `exact_match`, `pass@1`.

    Examples:
        >>> [reads_as_score(n) for n in ("gsm8k_acc", "pass@1", "eval/web_loss", "bpb_accounting")]
        [True, True, False, False]
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    return any(map(_SCORES.fullmatch, words)) and not any(map(_LOSSES.fullmatch, words))


def formula_like(names: Sequence[str]) -> Iterator[str]:
    """Those that a spreadsheet would run as a formula."""
    return (name for name in names if name.startswith(("=", "@", "+", "-")) and not _is_number(name))


def _normal_id(text: str) -> str:
    """`7` and `7.0` are the same run."""
    text = text.strip()
    if not _is_number(text):
        return text
    value = float(text)
    return str(int(value)) if math.isfinite(value) and value.is_integer() and abs(value) < 2**53 else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
