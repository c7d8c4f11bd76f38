"""Reading somebody's finished runs: ratios and losses from CSV, joined by run id, never by row position."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opmix.errors import ConfigError, DataError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.table import ProxyTable

ID_COLUMNS = ("run", "index", "run_id", "id", "name")
"""Columns that identify a run, in the order of preference; all of them are ids, never data (Olmix writes three)."""

ROUNDING = 0.02
"""Rows of ratios may add up to one within this much (rounded at the source); they are renormalised with a note."""


@dataclass(frozen=True)
class Columns:
    """Numeric columns of one CSV by run id."""

    path: Path
    ids: tuple[str, ...]
    id_column: str
    names: tuple[str, ...]
    values: FloatArray  # (M, columns)


@dataclass(frozen=True)
class Swarm:
    """Runs joined by id, ready to fit."""

    table: ProxyTable
    notes: tuple[str, ...]


def read_swarm(ratios: Path, metrics: Path | None = None) -> Swarm:
    """Read a swarm from two tables (Olmix, RegMix) or one joined table.

    Two tables share an id column (`run`, else `index`, ...) and every run must be in both. One joined table has
    `ratio_*` and `loss_*` columns. Domains are named without the `ratio_` prefix, metrics exactly as in the file.

    Raises:
        DataError: A file that cannot be read, runs that do not match, ratios that are not shares.
    """
    table = read_columns(ratios)
    if metrics is None:
        ratio_names = [n for n in table.names if n.startswith("ratio_")]
        loss_names = [n for n in table.names if n.startswith("loss_")]
        if not ratio_names or not loss_names:
            raise DataError(
                f"{ratios}: columns {list(table.names)[:6]}...; a joined table needs ratio_* and loss_* columns "
                "(give two files, RATIOS.csv METRICS.csv, otherwise)"
            )
        losses = _select(table, loss_names, table.ids)
    else:
        ratio_names = list(table.names)
        other = read_columns(metrics, id_column=table.id_column)
        _same_runs(table, other)
        loss_names = list(other.names)
        losses = _select(other, loss_names, table.ids)
    _finite(losses, table.ids, loss_names, metrics or ratios)
    return joined(table, ratio_names, losses, loss_names)


def joined(
    table: Columns, ratio_names: Sequence[str], losses: FloatArray, loss_names: Sequence[str], *, notes: Sequence[str] = ()
) -> Swarm:  # fmt: skip
    """A swarm from columns of shares and finite losses (M, E) of the same runs, wherever they were read.

    Raises:
        DataError: Ratios that are not shares.
    """
    mixtures, rounded = _shares(table, ratio_names)
    return Swarm(
        ProxyTable(
            points=table.ids, kinds=("run",) * len(table.ids), domains=_domains(ratio_names), metrics=tuple(loss_names),
            mixtures=mixtures, losses=losses,
        ),
        (*notes, *rounded),
    )  # fmt: skip


def read_mixtures(path: Path, domains: Sequence[str]) -> tuple[tuple[str, ...], FloatArray, tuple[str, ...]]:
    """Run ids and mixtures (M, D) over `domains` from a ratios table; other columns are ignored."""
    table = read_columns(path)
    available = {name.removeprefix("ratio_"): name for name in table.names}
    missing = [d for d in domains if d not in available]
    if missing:
        raise DataError(f"{path}: no column for domain {missing[0]!r}; expected one for each of {list(domains)}")
    mixtures, notes = _shares(table, [available[d] for d in domains])
    return table.ids, mixtures, notes


def read_prior(path: Path, domains: Sequence[str]) -> Mixture:
    """A prior from JSON `{domain: share}`; relative weights are normalised, names may carry `ratio_`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected a JSON object, domain to share") from error
    if not isinstance(content, Mapping) or not all(isinstance(v, int | float) for v in content.values()):
        raise DataError(f"{path}: expected a JSON object, domain to share, such as {{{domains[0]!r}: 0.5}}")
    shares = {str(name).removeprefix("ratio_"): float(share) for name, share in content.items()}
    unknown = [name for name in shares if name not in domains]
    if unknown:
        raise DataError(f"{path}: unknown domain {unknown[0]!r}; expected some of {list(domains)}")
    try:
        return Mixture.normalised({d: shares.get(d, 0.0) for d in domains})
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def read_columns(path: Path, *, id_column: str | None = None) -> Columns:
    """All numeric columns of a CSV, with the run id as text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            header = [name for name in (reader.fieldnames or []) if name]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a CSV file with a header") from error
    if not rows:
        raise DataError(f"{path}: no rows; expected a header and one row a run")
    lowered = {name.lower(): name for name in header}
    if id_column is not None and id_column not in header:
        raise DataError(f"{path}: no column {id_column!r} to join on; the ratios table identifies runs by it")
    key = id_column or next((lowered[name] for name in ID_COLUMNS if name in lowered), None)
    if key is None:
        raise DataError(
            f"{path}: no run id among {header[:6]}...; expected a column {' or '.join(map(repr, ID_COLUMNS[:2]))}"
        )
    ids = tuple(_normal_id(row[key]) for row in rows)
    seen: set[str] = set()
    for number, run in enumerate(ids, start=2):
        if run in seen or not run:
            raise DataError(
                f"{path}:{number}: run {run!r} {'appears twice' if run else 'is empty'}; expected one row a run"
            )
        seen.add(run)
    names = [name for name in header if name.lower() not in ID_COLUMNS]
    values = np.array(
        [[_number(path, number, name, row[name]) for name in names] for number, row in enumerate(rows, start=2)]
    )
    return Columns(path, ids, key, tuple(names), values)


def _normal_id(text: str | None) -> str:
    """`7` and `7.0` are the same run."""
    text = (text or "").strip()
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if math.isfinite(value) and value.is_integer() else text


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{path}:{line}: column {name!r} is {text!r}; expected a number") from None


def _domains(columns: Sequence[str]) -> tuple[str, ...]:
    prefixed = all(name.startswith("ratio_") for name in columns)
    return tuple(name.removeprefix("ratio_") if prefixed else name for name in columns)


def _select(table: Columns, names: Sequence[str], ids: Sequence[str]) -> FloatArray:
    row = {run: number for number, run in enumerate(table.ids)}
    column = {name: number for number, name in enumerate(table.names)}
    selected: FloatArray = table.values[[row[run] for run in ids]][:, [column[name] for name in names]]
    return selected


def _same_runs(ratios: Columns, metrics: Columns) -> None:
    left, right = set(ratios.ids), set(metrics.ids)
    only = [(ratios.path, sorted(left - right)), (metrics.path, sorted(right - left))]
    problems = [
        f"{path} alone has {len(runs)} run(s): {', '.join(runs[:5])}{'...' if len(runs) > 5 else ''}"
        for path, runs in only
        if runs
    ]
    if problems:
        raise DataError(
            f"runs do not match on {ratios.id_column!r}: {'; '.join(problems)}; expected the same runs in both tables"
        )


def _shares(table: Columns, names: Sequence[str]) -> tuple[FloatArray, tuple[str, ...]]:
    values = _select(table, names, table.ids)
    _finite(values, table.ids, names, table.path)
    if values.min() < 0:
        row, column = np.argwhere(values < 0)[0]
        raise DataError(
            f"{table.path}: run {table.ids[row]!r}: {names[column]} is {values[row, column]:g}; expected shares >= 0"
        )
    sums = values.sum(axis=1)
    off = np.abs(sums - 1)
    if off.max() > ROUNDING:
        worst = int(off.argmax())
        raise DataError(
            f"{table.path}: run {table.ids[worst]!r}: ratios add up to {sums[worst]:.4g}; expected 1 (within {ROUNDING:g} for rounding)"
        )
    notes: tuple[str, ...] = ()
    if off.max() > 1e-9:
        rounded = int((off > 1e-9).sum())
        span = f"{sums.min():.4g}-{sums.max():.4g}"
        notes = (f"{table.path.name}: ratios of {rounded} of {len(sums)} runs add up to {span}; renormalised",)
    return values / sums[:, None], notes


def _finite(values: FloatArray, ids: Sequence[str], names: Sequence[str], path: Path) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: run {ids[row]!r}: {names[column]} is {values[row, column]}; expected a finite number (drop diverged runs)"
        )
