"""Nats of every scored token under every probe: what mixtures of the probes' predictions are computed from."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opmix.mixing.mixture import FloatArray, InterpolationWeights
from opmix.probes.evaluation import HeldOut, token_nll
from opmix.probes.kinds import kind_of, names_of
from opmix.probes.tasks import ProxyEvaluator
from opmix.runs.files import regular

TokenTables = Mapping[str, FloatArray]
"""By evaluation set, (P, N_e) nats."""


def token_tables(
    evaluator: ProxyEvaluator, probes: Sequence[Path], held_out: Sequence[HeldOut], label: str
) -> TokenTables:
    """Evaluate every probe alone.

    Raises:
        TrainingError: A loss is not finite.
    """
    names, runtime, rows = names_of(len(probes)), evaluator.runtime, []
    alone = [InterpolationWeights(names, row) for row in np.eye(len(names))]
    opened = kind_of(evaluator.settings).interpolated(runtime.model, evaluator.settings, probes, evaluator.backend)
    with opened as (proxies, _), proxies.sweep(alone) as models, runtime.progress.task(label, len(alone)) as advance:
        for model in models:
            rows.append(token_nll(model, held_out, batch_tokens=evaluator.batch_tokens))
            advance(len(rows), len(alone))
    return {h.name: np.stack(table) for h, table in zip(held_out, zip(*rows, strict=True), strict=True)}


def save_tables(tables: TokenTables, file: Path) -> None:
    """Write an `.npz` file, whole or not at all; in single precision."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    with temporary.open("wb") as stream:
        arrays: dict[str, Any] = {f"set_{i}": table.astype(np.float32) for i, table in enumerate(tables.values())}
        np.savez(stream, **arrays)
    temporary.replace(file)


def load_tables(file: Path, names: Sequence[str]) -> TokenTables | None:
    """Read what `save_tables` wrote; None: it is not there, or damaged."""
    try:
        with regular(file).open("rb") as stream, np.load(stream) as arrays:
            return {name: arrays[f"set_{i}"].astype(np.float64) for i, name in enumerate(names)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
