"""The proxy table: one row per simulated (or really trained) model: weights, mixture, held-out losses."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from opmix.errors import StoreError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.runs.files import regular, write_text


@dataclass(frozen=True, kw_only=True)
class ProxyTable:
    """Points a law is fitted to. M points, D domains, E evaluation sets, P probes."""

    points: tuple[str, ...]
    kinds: tuple[str, ...]
    """`probe` (really trained), `look` (a probe before its end), `proxy` (interpolated) or `run` (somebody's
    training run)."""
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    mixtures: FloatArray  # (M, D)
    losses: FloatArray  # (M, E) nats per token
    standard_errors: FloatArray | None = None  # (M, E), over held-out sequences
    probes: tuple[str, ...] = ()
    weights: FloatArray | None = None  # (M, P) interpolation weights
    interference: FloatArray | None = None  # (M,) spread of the mixed delta weights, see mixing.design
    fitted: tuple[bool, ...] | None = None  # which points the law was fitted to; None: all

    @property
    def left_out(self) -> npt.NDArray[np.bool_]:
        """Which points the law was not fitted to, (M,)."""
        return np.zeros(len(self.points), bool) if self.fitted is None else ~np.array(self.fitted, bool)

    @property
    def fitted_rows(self) -> npt.NDArray[np.intp]:
        """Indices of the points the law was fitted to."""
        return np.arange(len(self.points)) if self.fitted is None else np.flatnonzero(self.fitted)

    def measured(self, mixture: Mixture) -> dict[str, float] | None:
        """Losses of a probe that was really trained on the mixture, by metric; None: there is none."""
        found = None
        for row, kind in enumerate(self.kinds):
            if kind == "probe" and np.allclose(self.mixtures[row], mixture.weights, atol=1e-9):
                found = dict(zip(self.metrics, map(float, self.losses[row]), strict=True))
        return found

    def write(self, path: Path) -> None:
        """Write as CSV: `proxy,kind,w_*,ratio_*,loss_*,se_*,interference`."""
        header = ["proxy", "kind", *(f"w_{p}" for p in self.probes), *(f"ratio_{d}" for d in self.domains)]
        header += [f"loss_{m}" for m in self.metrics]
        blocks = [self.mixtures, self.losses]
        if self.weights is not None:
            blocks.insert(0, self.weights)
        if self.standard_errors is not None:
            header += [f"se_{m}" for m in self.metrics]
            blocks.append(self.standard_errors)
        if self.interference is not None:
            header.append("interference")
            blocks.append(self.interference[:, None])
        if self.fitted is not None:
            header.append("fitted")
            blocks.append(np.array(self.fitted, dtype=np.float64)[:, None])
        numbers = np.concatenate(blocks, axis=1)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        for point, kind, row in zip(self.points, self.kinds, numbers, strict=True):
            writer.writerow([point, kind, *(repr(float(x)) for x in row)])
        write_text(path, text.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote, or another table with `ratio_*` and `loss_*` columns; a missing number is NaN.

        Raises:
            StoreError: It cannot be read, has other columns, or words where numbers belong.
        """
        try:
            with regular(path).open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, restkey="", restval=""))
        except (OSError, ValueError, csv.Error) as error:
            raise StoreError(f"{path}: cannot be read as CSV ({error}); run the command again") from error
        header = [key for key in (rows[0] if rows else {}) if key]

        def block(prefix: str) -> tuple[tuple[str, ...], FloatArray]:
            of = [key for key in header if key.startswith(prefix)]
            values = [[_number(row[key], path, key) for key in of] for row in rows]
            names = tuple(key.removeprefix(prefix) for key in of)
            return names, np.array(values, dtype=np.float64).reshape(len(rows), len(of))

        (domains, mixtures), (metrics, losses), (measured, errors) = map(block, ("ratio_", "loss_", "se_"))
        if rows and not (domains and metrics):
            raise StoreError(f"{path}: columns {header[:6]}...; expected ratio_<domain> and loss_<metric> columns")
        probes, weights = block("w_")
        interference, fitted = (block(name)[1] if name in header else None for name in ("interference", "fitted"))
        first = next((key for key in ("proxy", "run", "name") if key in header), None)
        return cls(
            points=tuple(row[first] if first else str(i) for i, row in enumerate(rows)),
            kinds=tuple(row.get("kind") or "proxy" for row in rows),
            domains=domains,
            metrics=metrics,
            mixtures=mixtures,
            losses=losses,
            standard_errors=_columns(errors, measured, metrics) if measured else None,
            probes=probes,
            weights=weights if probes else None,
            interference=None if interference is None else np.nan_to_num(interference[:, 0]),
            fitted=None if fitted is None else tuple(bool(x) for x in fitted[:, 0]),  # NaN is true
        )


def _columns(block: FloatArray, have: tuple[str, ...], want: tuple[str, ...]) -> FloatArray:
    """The columns wanted, NaN where there is none."""
    made = np.full((len(block), len(want)), np.nan)
    for i, name in enumerate(want):
        if name in have:
            made[:, i] = block[:, have.index(name)]
    return made


def _number(text: str, path: Path, column: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError as error:
        raise StoreError(f"{path}: {column} is {text[:40]!r}; expected a number or nothing") from error
