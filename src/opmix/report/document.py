"""What a run folder says about its result: `mixture.json` and the files beside it, checked and typed.

Everything except the kind, the mixture and the laws is optional: a section whose data is absent is left out
of the report. What is present has to be well formed; a damaged file is an error that names the place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from opmix.errors import StoreError
from opmix.mixing.mixture import FloatArray

Shares = Mapping[str, float]
"""Token share per domain."""
Losses = Mapping[str, float]
"""Nats per token per evaluation set."""
Interval = tuple[float, float]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Move to the proposal or keep the reference mixture, and how sure that is."""

    action: str = "move"
    reason: str = ""
    reference: str | None = None
    gain: float | None = None  # nats; positive is better than the reference
    gain_interval: Interval | None = None
    probability: float | None = None
    confidence: float | None = None
    noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class LawEntry:
    """One evaluation set's law, `loss = c + exp(sum_d t_d p_d)`, and how well it holds (nats per token)."""

    c: float
    t: Shares
    huber: float | None = None
    rmse: float | None = None
    loo_rmse: float | None = None
    interference: float = 0.0  # nats per unit of interference; predictions are made at 0
    spearman: float | None = None
    loo_spearman: float | None = None
    num_points: int | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A mixture scored beside the proposal."""

    name: str
    mixture: Shares | None = None
    predicted: Losses = field(default_factory=dict)
    objective: float | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    feasible: bool = True
    note: str | None = None
    measured: Losses | None = None


@dataclass(frozen=True, kw_only=True)
class Solver:
    """The certificate of the convex solve."""

    status: str = ""
    objective: float | None = None
    gap: float | None = None
    max_violation: float | None = None
    iterations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class CoordinateEntry:
    """The directions a law can tell apart, each a mixture of domains."""

    names: tuple[str, ...]
    mixtures: Mapping[str, Shares]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Two proxies with the same mixture and different interpolation weights; `difference` is a minus b."""

    mixture: Shares = field(default_factory=dict)
    a: str = "a"
    b: str = "b"
    difference: Losses = field(default_factory=dict)
    explained: Losses = field(default_factory=dict)  # what the law's interference term accounts for
    standard_error: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Does the proxy loss depend on the mixture alone?"""

    available: bool = False
    twins: tuple[Twin, ...] = ()
    worst: float | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tokens, FLOPs and seconds by purpose; the search's share of the stage's training FLOPs."""

    tokens: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    search_share: float | None = None
    stage_tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was minimised, under which constraints (one sentence each)."""

    objective: str = "mean"
    kl: float = 0.05
    prior: Shares | None = None
    weights: Losses | None = None
    reference: Losses | None = None
    constraints: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MixtureDocument:
    """`mixture.json`, written by `opmix search` and `opmix fit`."""

    kind: str
    mixture: Shares
    laws: Mapping[str, LawEntry]
    created: str = ""
    optimum: Shares | None = None
    interval: Mapping[str, Interval] = field(default_factory=dict)
    interval_level: float = 0.9
    decision: Decision | None = None
    alternatives: tuple[Alternative, ...] = ()
    solver: Solver | None = None
    settings: Settings = field(default_factory=Settings)
    coordinates: CoordinateEntry | None = None
    check: Check | None = None
    cost: Cost | None = None
    baseline: Losses = field(default_factory=dict)
    units: str = "nats per token"
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    epochs: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One full training of the demo's comparison."""

    mixture: Shares | None = None
    measured: Losses = field(default_factory=dict)
    predicted: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`comparison.json`: full trainings on equal tokens."""

    arms: Mapping[str, Arm]
    tokens: int | None = None
    winner: str | None = None
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class VerifiedPoint:
    """A mixture trained directly and simulated; nats per token by eval set."""

    name: str
    mixture: Shares = field(default_factory=dict)
    direct: Losses = field(default_factory=dict)
    proxy: Losses = field(default_factory=dict)
    law: Losses = field(default_factory=dict)
    standard_error: Losses = field(default_factory=dict)
    kl: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MeasuredMixture:
    """Objective of a directly trained mixture, and the law's."""

    name: str
    direct: float
    law: float
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VerificationDocument:
    """`verification.json`: what `opmix verify` found."""

    points: tuple[VerifiedPoint, ...]
    measured: tuple[MeasuredMixture, ...] = ()
    sentence: str = ""
    matters: bool = False
    refinement: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DrawsDocument:
    """`law_draws.json`: B posterior draws of the laws."""

    c: tuple[tuple[float, ...], ...]
    t: tuple[tuple[tuple[float, ...], ...], ...]
    metrics: tuple[str, ...]
    domains: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProxyTable:
    """`tables/proxies.csv`: M simulated (or trained) points; nats per token, NaN where missing."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    ratios: FloatArray  # (M, D)
    losses: FloatArray  # (M, E)
    errors: FloatArray  # (M, E) standard errors
    interference: FloatArray  # (M,)
    fitted: npt.NDArray[np.bool_]  # (M,) whether the law was fitted to the point


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report is made of."""

    document: MixtureDocument
    proxies: ProxyTable | None = None
    draws: DrawsDocument | None = None
    comparison: Comparison | None = None
    verification: VerificationDocument | None = None
    manifest: Mapping[str, Any] | None = None
    name: str = ""


def load_report_data(folder: Path) -> ReportData:
    """Read a run folder.

    Args:
        folder: Holds `mixture.json` and, where the run made them, `timing.json`, `tables/proxies.csv`, `law_draws.json`,
            `comparison.json`, `verification.json` and `manifest.json`.

    Raises:
        StoreError: `mixture.json` is missing, or one of the files is damaged.
    """
    path = folder / "mixture.json"
    if not path.is_file():
        raise StoreError(
            f"{folder}: no mixture.json; expected the --out folder of a finished `opmix search` or `opmix fit`"
        )
    raw = _read_json(path)
    if not isinstance(raw, dict) or raw.get("schema", 1) != 1:
        schema = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise StoreError(f"{path}: schema {schema!r}; this version of opmix reads schema 1")
    document = _typed(MixtureDocument, _timed(raw, folder / "timing.json"), path)
    if not document.mixture:
        raise StoreError(f"{path}: mixture is empty; expected a share per domain; run the command again")
    draws, comparison, manifest = (folder / f"{n}.json" for n in ("law_draws", "comparison", "manifest"))
    verified = folder / "verification.json"
    table = folder / "tables" / "proxies.csv"
    return ReportData(
        document=document,
        proxies=_read_proxies(table) if table.is_file() else None,
        draws=_read_draws(draws) if draws.is_file() else None,
        comparison=_typed(Comparison, _read_json(comparison), comparison) if comparison.is_file() else None,
        verification=_typed(VerificationDocument, _read_json(verified), verified) if verified.is_file() else None,
        manifest=_read_json(manifest) if manifest.is_file() else None,
        name=folder.resolve().name,
    )


def _timed(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """`mixture.json` with what `timing.json` knows of the clock."""
    if not path.is_file():
        return raw
    timing = _read_json(path)
    if not isinstance(timing, dict):
        raise StoreError(f"{path}: damaged: holds {type(timing).__name__}; run the command again to rewrite it")
    cost, solver = raw.get("cost"), raw.get("solver")
    return {
        **raw,
        "created": timing.get("created"),
        "cost": {**cost, "seconds": timing.get("cost")} if isinstance(cost, dict) else cost,
        "solver": {**solver, "seconds": timing.get("solver_seconds")} if isinstance(solver, dict) else solver,
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as JSON ({error}); run the command again to rewrite it") from error


def _typed(kind: type[_T], raw: Any, path: Path) -> _T:
    # A null means the same as an absent key, so the defaults above apply to both.
    if isinstance(raw, dict):
        raw = _without_nulls(raw)
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, p['loc'])) or 'top level'}: {p['msg']} (found {str(p['input'])[:60]!r})"
            for p in error.errors()
        ]
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise StoreError(
            f"{path}: damaged: {'; '.join(problems[:3])}{more}; run the command again to rewrite it"
        ) from error


def _without_nulls(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_nulls(value) for key, value in raw.items() if value is not None}
    if isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        return [_without_nulls(item) for item in raw]
    return raw


def _read_draws(path: Path) -> DrawsDocument | None:
    draws = _typed(DrawsDocument, _read_json(path), path)
    if not draws.c:
        return None
    count, metrics, domains = len(draws.c), len(draws.metrics), len(draws.domains)
    square = all(len(row) == metrics for row in draws.c) and all(
        len(draw) == metrics and all(len(row) == domains for row in draw) for draw in draws.t
    )
    if len(draws.t) != count or not square:
        raise StoreError(
            f"{path}: damaged: c and t are not {count} draws of {metrics} metrics and {domains} domains; "
            "run the command again to rewrite it"
        )
    return draws


def _read_proxies(path: Path) -> ProxyTable:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise StoreError(f"{path}: cannot be read as CSV ({error}); run the command again") from error
    header = [key for key in (rows[0] if rows else {}) if key]

    def names(prefix: str) -> tuple[str, ...]:
        return tuple(key.removeprefix(prefix) for key in header if key.startswith(prefix))

    def block(prefix: str, of: tuple[str, ...]) -> FloatArray:
        values = [[_number(row.get(prefix + name, ""), path, prefix + name) for name in of] for row in rows]
        return np.array(values, dtype=np.float64).reshape(len(rows), len(of))

    domains, metrics = names("ratio_"), names("loss_")
    if rows and not (domains and metrics):
        raise StoreError(f"{path}: columns {header[:6]}...; expected ratio_<domain> and loss_<metric> columns")
    first = next((key for key in ("proxy", "run", "name") if key in header), None)
    return ProxyTable(
        names=tuple(row[first] if first else str(i) for i, row in enumerate(rows)),
        kinds=tuple(row.get("kind") or "proxy" for row in rows),
        domains=domains, metrics=metrics,
        ratios=block("ratio_", domains), losses=block("loss_", metrics), errors=block("se_", metrics),
        interference=np.nan_to_num(block("", ("interference",))[:, 0]),
        fitted=block("", ("fitted",))[:, 0] != 0,  # an absent column is NaN, hence true
    )  # fmt: skip


def _number(text: str, path: Path, column: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError as error:
        raise StoreError(f"{path}: {column} is {text[:40]!r}; expected a number or nothing") from error
