"""Reading somebody's finished runs: ratios and losses from CSV, joined by run id, never by row position."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opmix.errors import ConfigError, DataError
from opmix.mixing.columns import Columns, formula_like, is_counter, is_saved_index, read_columns, reads_as_score
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.table import ProxyTable

ROUNDING = 0.02
"""Rows of ratios may add up to one within this much (rounded at the source); they are renormalised with a note."""


_LARGEST = 1e6
"""Of anything that a law is fitted to; perplexities of untrained models are below."""


@dataclass(frozen=True)
class Swarm:
    """Runs joined by id, ready to fit."""

    table: ProxyTable
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Which columns of a metrics table are looked at, and which way is better. Names as in the file."""

    chosen: tuple[str, ...] = ()
    """Empty: all but counters, timings and saved indices."""
    maximize: tuple[str, ...] = ()
    """More is better; a law is fitted to what is missing to the best, see `as_loss`."""
    minimize: tuple[str, ...] = ()
    """Less is better, whatever the name says."""

    def of(self, offered: Sequence[str], known: Collection[str], where: Path) -> list[str]:
        """The metrics that are fitted: known, chosen, and with a direction.

        Args:
            offered: Names that are fitted unless others are chosen.
            known: All names there are.
            where: For messages.

        Raises:
            ConfigError: An unknown name, or one that is to be maximised and minimised.
            DataError: Nothing is left, or a name reads like a score and its direction is not said.
        """
        for option in ("chosen", "maximize", "minimize"):
            for name in getattr(self, option):
                if name not in known:
                    flag = "metrics" if option == "chosen" else option
                    raise ConfigError(f"--{flag}: no column {name!r} in {where}; it has {_shown(list(offered))}")
        if both := set(self.maximize) & set(self.minimize):
            raise ConfigError(f"--maximize and --minimize both name {sorted(both)[0]!r}; expected one of them")
        names = [n for n in offered if not self.chosen or n in self.chosen]
        if not names:
            raise DataError(f"{where}: no column of losses among {_shown(sorted(known))}; name them with --metrics")
        unsaid = [n for n in names if reads_as_score(n) and n not in (*self.maximize, *self.minimize)]
        if unsaid:
            raise DataError(
                f"{where}: {unsaid[0]!r} reads like a score, where more is better, and losses are minimised; give "
                f"--maximize {unsaid[0]!r} (or --minimize, or leave it out with --metrics)"
            )
        return names

    def as_losses(self, values: FloatArray, names: Sequence[str]) -> tuple[FloatArray, list[str]]:
        """Columns (M, E) of which less is better, and what they are called now."""
        columns = [as_loss(y, n) if n in self.maximize else (y, n) for y, n in zip(values.T, names, strict=True)]
        return np.stack([y for y, _ in columns], axis=1), [n for _, n in columns]


def read_swarm(ratios: Path, metrics: Path | None = None, directions: Directions | None = None) -> Swarm:
    """Read a swarm from two tables (Olmix, RegMix) or one joined table.

    Two tables share an id column (`run`, else `index`, ...) and every run must be in both. One joined table has
    `ratio_*` and `loss_*` columns. Domains are named without the `ratio_` prefix, metrics exactly as in the file.

    Raises:
        DataError: A file that cannot be read, runs that do not match, ratios that are not shares, a metric that reads
            like a score where more is better and is not said to be one.
        ConfigError: `directions` name a column that is not there.
    """
    directions, table = directions or Directions(), read_columns(ratios)
    named = (*directions.chosen, *directions.maximize, *directions.minimize)
    if metrics is None:
        other = table
        ratio_names = [n for n in table.names if n.startswith("ratio_")]
        losses_of = (n for n in table.names if n.startswith("loss_") and not _counts(n.removeprefix("loss_")))
        offered = list(dict.fromkeys([*losses_of, *(n for n in table.names if n in named)]))
        if not ratio_names or not offered:
            raise DataError(
                f"{ratios}: columns {list(table.names)[:6]}...; a joined table needs ratio_* and loss_* columns "
                "(give two files, RATIOS.csv METRICS.csv, otherwise)"
            )
        passed = [n for n in table.names if n not in (*ratio_names, *offered)]
    else:
        other = read_columns(metrics, id_column=table.id_column)
        _same_runs(table, other)
        passed = [n for n in table.names if is_saved_index(n) or _is_label(table, n)]
        ratio_names = [n for n in table.names if n not in passed]
        offered = [n for n in other.names if n in named or not (_is_label(other, n) or _counts(n))]
        passed += [n for n in other.names if n not in offered]
    names = directions.of(offered, other.names, other.path)
    losses = other.select(names, table.ids)
    _finite(losses, table.ids, names, other.path)
    _check_losses(losses, directions, names, table.ids, other.path)
    notes = [f"column(s) not taken for shares or losses: {_shown(list(dict.fromkeys(passed)))}"] if passed else []
    if ids := list(formula_like(table.ids)):
        notes.append(f"a spreadsheet would run {_shown(ids)} as a formula: open the tables written here as text")
    return joined(table, ratio_names, *directions.as_losses(losses, names), notes=notes)


def _check_losses(
    losses: FloatArray, directions: Directions, names: Sequence[str], ids: Sequence[str], path: Path
) -> None:
    """Refuse numbers that are no losses: negative ones whose direction is not said, and those of diverged runs."""
    for name, column in zip(names, losses.T, strict=True):
        if column.max() < 0 and name not in (*directions.maximize, *directions.minimize):
            raise DataError(
                f"{path}: {name!r} is negative in every run, which no loss of text is; of log-likelihoods, where more "
                f"is better, give --maximize {name!r} (or --minimize, if less is)"
            )
        if (worst := float(np.abs(column).max())) > _LARGEST:
            run = ids[int(np.abs(column).argmax())]
            raise DataError(
                f"{path}: run {run!r}: {name} is {worst:g}; expected losses below {_LARGEST:g} (drop diverged runs)"
            )


def as_loss(score: FloatArray, name: str) -> tuple[FloatArray, str]:
    """What is missing to the best score, and what it is called: `1 - NAME`, `100 - NAME`, else `-NAME`.

    Examples:
        >>> as_loss(np.array([0.25, 0.5]), "acc")
        (array([0.75, 0.5 ]), '1 - acc')
    """
    for best in (1, 100):
        if score.min() >= 0 and score.max() <= best:
            return best - score, f"{best} - {name}"
    return -score, f"-{name}"


def _is_label(table: Columns, name: str) -> bool:
    """Whether no cell of a column is a number."""
    return name in table.not_numbers and bool(np.isnan(table.values[:, table.names.index(name)]).all())


def _counts(name: str) -> bool:
    return is_counter(name) or is_saved_index(name)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def joined(
    table: Columns,
    ratio_names: Sequence[str],
    losses: FloatArray,
    loss_names: Sequence[str],
    *,
    notes: Sequence[str] = (),
) -> Swarm:
    """A swarm from columns of shares and finite losses (M, E) of the same runs, wherever they were read.

    Raises:
        DataError: Ratios that are not shares.
    """
    mixtures, rounded = _shares(table, ratio_names)
    return Swarm(
        ProxyTable(
            points=table.ids,
            kinds=("run",) * len(table.ids),
            domains=_domains(ratio_names),
            metrics=tuple(loss_names),
            mixtures=mixtures,
            losses=losses,
        ),
        (*notes, *rounded),
    )


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
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}; expected a JSON object, domain to share") from error
    if not isinstance(content, Mapping) or not all(_is_share(v) for v in content.values()):
        raise DataError(f"{path}: expected a JSON object, domain to share, such as {{{domains[0]!r}: 0.5}}")
    shares = {str(name).removeprefix("ratio_"): float(share) for name, share in content.items()}
    unknown = [name for name in shares if name not in domains]
    if unknown:
        raise DataError(f"{path}: unknown domain {unknown[0]!r}; expected some of {list(domains)}")
    try:
        return Mixture.normalised({d: shares.get(d, 0.0) for d in domains})
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300


def _domains(columns: Sequence[str]) -> tuple[str, ...]:
    prefixed = all(name.startswith("ratio_") for name in columns)
    return tuple(name.removeprefix("ratio_") if prefixed else name for name in columns)


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
    values = table.select(names, table.ids)
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
            f"{table.path}: run {table.ids[worst]!r}: ratios add up to {sums[worst]:.4g}; expected 1 (within "
            f"{ROUNDING:g} for rounding)"
        )
    notes: tuple[str, ...] = ()
    if off.max() > 1e-9:
        rounded = int((off > 1e-9).sum())
        span = f"{sums.min():.6g} to {sums.max():.6g}"
        notes = (f"{table.path.name}: ratios of {rounded} of {len(sums)} runs add up to {span}; renormalised",)
    return values / sums[:, None], notes


def _finite(values: FloatArray, ids: Sequence[str], names: Sequence[str], path: Path) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: run {ids[row]!r}: {names[column]} is {values[row, column]}; expected a finite number (drop "
            "diverged runs)"
        )
