"""The proxy table: one row per simulated (or really trained) model: weights, mixture, held-out losses."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opmix.mixing.mixture import FloatArray
from opmix.runs.files import write_text


@dataclass(frozen=True, kw_only=True)
class ProxyTable:
    """Points a law is fitted to. M points, D domains, E evaluation sets, P probes."""

    points: tuple[str, ...]
    kinds: tuple[str, ...]
    """`probe` (a real adapter), `proxy` (interpolated) or `run` (somebody's training run)."""
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
    def fitted_rows(self) -> npt.NDArray[np.intp]:
        """Indices of the points the law was fitted to."""
        return np.arange(len(self.points)) if self.fitted is None else np.flatnonzero(self.fitted)

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
