"""`opmix fit`: law, solve and decision on anybody's finished runs; no model needed."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opmix.domain import user_path
from opmix.errors import ConfigError
from opmix.mixing.conic import Objective
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, Verdict, decide
from opmix.mixing.law import fit_flops, fit_law
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.swarm import Directions, Swarm, read_mixtures, read_prior, read_swarm
from opmix.mixing.table import ProxyTable
from opmix.progress import Progress, Silent
from opmix.protocols.law import LawFit
from opmix.results.draws import LawDrawsFile
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.results.timing import TimingFile
from opmix.runs.files import write_text
from opmix.runs.run_folder import run_folder
from opmix.runs.store import RunStore
from opmix.settings import NotNegative, Positive, settings
from opmix.settings.loading import nearest, validated
from opmix.trackers import METRIC_PREFIX, RATIO_PREFIX, log_decision, read_tracked
from opmix.trackers.write import PROJECT, Log

_FLOPS = 5e9
"""Operations a second that a core of about 2020 makes of such fits."""
_LONG = 10.0


@dataclass(frozen=True)
class FitResult:
    """What a swarm says."""

    table: ProxyTable
    fit: LawFit
    verdict: Verdict
    notes: tuple[str, ...]
    predictions: tuple[tuple[str, ...], FloatArray] | None = None

    @property
    def mixture(self) -> Mixture:
        """The recommendation."""
        return self.verdict.mixture

    def json(self) -> dict[str, Any]:
        """The content of `mixture.json`."""
        return self.file().json()

    def file(self) -> MixtureFile:
        """Return the decision as `mixture.json` keeps it."""
        return MixtureFile.of("fit", self.fit, self.verdict, notes=self.notes)

    def timing(self) -> TimingFile:
        """Return when and how long, as `timing.json` keeps it."""
        return TimingFile.of(self.verdict)

    def log_to(self, to: str | Sequence[str] | Log, *, project: str = PROJECT, folder: str | Path = "logs") -> None:
        """Log runs, mixture and decision to trackers; see `SearchResult.log_to`."""
        log_decision(self.file(), self.table, to, project=project, folder=folder)

    def __repr__(self) -> str:
        return self.file().summary()

    def _repr_html_(self) -> str:
        from opmix.report.notebook import decision_html

        return decision_html(self.file())

    def write(self, folder: str | Path, *, inputs: dict[str, Any] | None = None) -> None:
        """Write `mixture.json`, `law_draws.json`, `timing.json`, `manifest.json`, the table, predictions and the report.

        Args:
            folder: Made where it does not exist; a URL will do.
            inputs: What `manifest.json` is to say of where the runs came from.

        Raises:
            ConfigError: No path.
            StoreError: Another process holds the folder, or it holds a run of another command.
        """
        with run_folder(folder) as here, RunStore(here, "fit"):
            self.write_into(here, inputs or {})

    def write_into(self, folder: Path, inputs: dict[str, Any]) -> None:
        """The same into a folder that is held already."""
        from opmix.report import write_report

        (folder / "predictions.csv").unlink(missing_ok=True)
        self.file().write(folder)
        LawDrawsFile.of(self.verdict.draws).write(folder)
        self.timing().write(folder)
        Manifest.write(folder, "fit", inputs=inputs)
        self.table.write(folder / "tables" / "proxies.csv")
        if self.predictions is not None:
            write_text(folder / "predictions.csv", predictions_csv(*self.predictions, self.fit.law.metrics))
        write_report(folder)


@settings
class _Given:
    """What `fit_runs` is given beside tables and rules, checked as the settings of a file are."""

    kl: NotNegative
    objective: Objective
    huber_delta: Positive
    weights: dict[str, float] | None
    loss_limits: dict[str, float] | None
    ratio_prefix: str
    metric_prefix: str


def fit_runs(
    ratios: str | Path,
    metrics: str | Path | None = None,
    *,
    source: str = "table",
    ratio_prefix: str = RATIO_PREFIX,
    metric_prefix: str = METRIC_PREFIX,
    directions: Directions | None = None,
    prior: str | Path | None = None,
    kl: float = 0.05,
    objective: Objective = "mean",
    weights: Mapping[str, float] | None = None,
    loss_limits: Mapping[str, float] | None = None,
    predict: str | Path | None = None,
    constraints: Constraints | None = None,
    decision: DecisionSettings | Mapping[str, Any] | None = None,
    huber_delta: float = 0.02,
    progress: Progress | None = None,
) -> FitResult:
    """Fit mixing laws to finished runs and solve for the mixture.

    Args:
        ratios: Shares per run, or one joined table with `ratio_*` and `loss_*` columns; or what a tracker wrote.
        metrics: Losses per run; None: the joined table.
        source: `table`, or the tracker: `wandb`, `mlflow`, `tensorboard`.
        ratio_prefix: Trackers: of the shares' names.
        metric_prefix: Trackers: of the losses' names.
        directions: Which metrics are fitted, and of which more is better; None: all, as losses.
        prior: JSON, domain to share; None: uniform.
        kl: Weight of the KL term.
        objective: Of the metrics: their mean, the mean by `weights`, or the one that is worst against the prior.
        weights: Metric to weight >= 0; metrics that are not named have none.
        loss_limits: Metric to the percent by which it may be above its prediction at the prior.
        predict: Ratios to predict losses for.
        constraints: What the mixture must obey.
        decision: When to believe the gain; the reference that "keep" means is the prior.
        huber_delta: Of the law's regression, nats.
        progress: Shows what is going on; None: silence.

    Raises:
        ConfigError: An unknown source, column, weight or limit, or a value that is of another kind.
        DataError: Tables that cannot be read or do not match.
        LawError: Too few or degenerate runs.
        InfeasibleError: Constraints that contradict each other.
    """
    numbers = {"kl": kl, "huber_delta": huber_delta, "objective": objective}
    told = {"weights": weights, "loss_limits": loss_limits}
    validated(_Given, {**numbers, **told, "ratio_prefix": ratio_prefix, "metric_prefix": metric_prefix})
    for name, value, kind in (("constraints", constraints, Constraints), ("directions", directions, Directions)):
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{name}: a {type(value).__name__}; expected {kind.__module__}.{kind.__name__}(...)")
    decision = validated(DecisionSettings, decision or {})
    clock = [time.perf_counter()]
    files = (user_path(ratios), None if metrics is None else user_path(metrics))
    swarm = _swarm(*files, source, ratio_prefix, metric_prefix, directions)
    table = swarm.table
    chosen = read_prior(user_path(prior), table.domains) if prior is not None else Mixture.uniform(table.domains)
    wanted = read_mixtures(user_path(predict), table.domains) if predict is not None else None
    clock.append(time.perf_counter())
    progress = progress or Silent()
    size = (len(table.points), min(len(table.points), len(table.domains)), len(table.metrics))
    foreseen = fit_flops(*size, decision.draws) / _FLOPS
    if foreseen > _LONG:
        progress.note(
            f"{size[2]} laws of {size[1]} exponents from {size[0]} runs: about {foreseen:.0f} seconds; fewer metrics "
            "(`--metrics`) or domains take less"
        )
    with progress.task(f"{len(table.metrics)} laws from {len(table.points)} runs", 0):
        fit = fit_law(table.mixtures, table.losses, domains=table.domains, metrics=table.metrics, delta=huber_delta)
    at_prior = fit.law.predict(chosen.weights)[0]
    settings = SolveSettings(
        objective=objective, omega=_omega(objective, weights, table.metrics), reference=at_prior, kl=kl, prior=chosen
    )
    clock.append(time.perf_counter())
    best = int(table.losses.mean(axis=1).argmin())
    with progress.task("intervals and decision", 0):
        verdict = decide(
            fit,
            candidates=_candidates(table, chosen, uniform=prior is not None),
            reference="prior",
            points=table.points,
            settings=settings,
            constraints=_limited(constraints or Constraints(), table.metrics, at_prior, loss_limits or {}),
            decision=decision,
            notes={"best run": f"run {table.points[best]!r}, lowest mean loss of the swarm"},
        )
    clock.append(time.perf_counter())
    seconds = dict(zip(("read", "fit", "solve_and_decide"), np.diff(clock), strict=True))
    predictions = None if wanted is None else (wanted[0], fit.law.predict(wanted[1]))
    notes = (*swarm.notes, *(() if wanted is None else wanted[2]))
    return FitResult(table, fit, replace(verdict, seconds=seconds), notes, predictions)


def _omega(objective: Objective, weights: Mapping[str, float] | None, metrics: Sequence[str]) -> FloatArray | None:
    if (objective == "weighted") != bool(weights):
        raise ConfigError(
            f"--weights: {dict(weights or {})}; expected METRIC=WEIGHT with --objective weighted, and only then"
        )
    for name, weight in (weights or {}).items():
        if name not in metrics:
            raise ConfigError(f"--weights {name}: unknown metric{nearest(name, metrics)}")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"--weights {name}: {weight}; expected a number >= 0")
    if weights and not sum(weights.values()) > 0:
        raise ConfigError("--weights: all are 0; expected at least one above")
    return np.array([weights.get(m, 0.0) for m in metrics]) if weights else None


def _limited(
    constraints: Constraints, metrics: Sequence[str], at_prior: FloatArray, percent: Mapping[str, float]
) -> Constraints:
    """With limits on losses, relative to what the law says of the prior."""
    limits, labels = {}, {}
    for name, most in percent.items():
        if name not in metrics:
            raise ConfigError(f"--limit {name}: unknown metric{nearest(name, metrics)}")
        base = float(at_prior[metrics.index(name)])
        if not 0 <= most < math.inf or base <= 0:
            raise ConfigError(
                f"--limit {name}: {most:g} percent of {base:.4g} at the prior; expected a percentage >= 0 of a "
                "positive loss"
            )
        limits[name] = base * (1 + most / 100)
        labels[name] = f"loss limit: {name} <= {limits[name]:.4g} ({most:g} % above the prior's {base:.4g})"
    return replace(
        constraints,
        max_loss={**constraints.max_loss, **limits},
        max_loss_labels={**constraints.max_loss_labels, **labels},
    )


def _swarm(
    ratios: Path,
    metrics: Path | None,
    source: str,
    ratio_prefix: str,
    metric_prefix: str,
    directions: Directions | None,
) -> Swarm:
    if source == "table":
        return read_swarm(ratios, metrics, directions)
    if metrics is not None:
        raise ConfigError(f"METRICS: {metrics}; --from {source} reads shares and losses from one place; leave it out")
    return read_tracked(ratios, source, ratio_prefix=ratio_prefix, metric_prefix=metric_prefix, directions=directions)


def _candidates(table: ProxyTable, prior: Mixture, *, uniform: bool) -> dict[str, Mixture]:
    best = int(table.losses.mean(axis=1).argmin())
    named = {"prior": prior}
    if uniform:
        named["uniform"] = Mixture.uniform(table.domains)
    named["mean of runs"] = Mixture.normalised(dict(zip(table.domains, table.mixtures.mean(axis=0), strict=True)))
    named["best run"] = Mixture.normalised(dict(zip(table.domains, table.mixtures[best], strict=True)))
    return named


def predictions_csv(runs: Sequence[str], losses: FloatArray, metrics: Sequence[str]) -> str:
    """`run` and one column per metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *metrics])
    for run, row in zip(runs, losses, strict=True):
        writer.writerow([run, *(repr(float(x)) for x in row)])
    return text.getvalue()
